#include "simd/avx2.h"

#include "rotary/vectors.h"

namespace glimodern {

void rotary_avx2(const Rotary<float>& in, int64_t begin, int64_t end) { rotate<Pair<Avx2>>(in, begin, end); }
void rotary_avx2(const Rotary<Bf16>& in, int64_t begin, int64_t end) { rotate<EvenOdd<Avx2>>(in, begin, end); }

}  // namespace glimodern
