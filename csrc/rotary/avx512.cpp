#include "simd/avx512.h"

#include "rotary/vectors.h"

namespace glimodern {

void rotary_avx512(const Rotary<float>& in, int64_t begin, int64_t end) { rotate<Pair<Avx512>>(in, begin, end); }
void rotary_avx512(const Rotary<Bf16>& in, int64_t begin, int64_t end) { rotate<EvenOdd<Avx512>>(in, begin, end); }

}  // namespace glimodern
