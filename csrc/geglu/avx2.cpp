#include "simd/avx2.h"

#include "geglu/vectors.h"

namespace glimodern {

void geglu_forward_avx2(const Geglu<float>& in, int64_t begin, int64_t end) { forward<Pair<Avx2>>(in, begin, end); }
void geglu_forward_avx2(const Geglu<Bf16>& in, int64_t begin, int64_t end) { forward<EvenOdd<Avx2>>(in, begin, end); }
void geglu_backward_avx2(const Geglu<float>& in, int64_t begin, int64_t end) { backward<Pair<Avx2>>(in, begin, end); }
void geglu_backward_avx2(const Geglu<Bf16>& in, int64_t begin, int64_t end) { backward<EvenOdd<Avx2>>(in, begin, end); }

}  // namespace glimodern
