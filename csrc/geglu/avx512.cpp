#include "simd/avx512.h"

#include "geglu/vectors.h"

namespace glimodern {

void geglu_forward_avx512(const Geglu<float>& in, int64_t begin, int64_t end) { forward<Pair<Avx512>>(in, begin, end); }
void geglu_forward_avx512(const Geglu<Bf16>& in, int64_t begin, int64_t end) {
  forward<EvenOdd<Avx512>>(in, begin, end);
}
void geglu_backward_avx512(const Geglu<float>& in, int64_t begin, int64_t end) {
  backward<Pair<Avx512>>(in, begin, end);
}
void geglu_backward_avx512(const Geglu<Bf16>& in, int64_t begin, int64_t end) {
  backward<EvenOdd<Avx512>>(in, begin, end);
}

}  // namespace glimodern
