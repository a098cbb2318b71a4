#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

struct Int8 : Int8Avx512 {  // as in avx2.cpp
  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, A* sum) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const W first = broadcast(x + r * stride), second = broadcast(x + r * stride + kGroupBytes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const W pairs = _mm512_add_epi16(_mm512_maddubs_epi16(first, weights(vector_at<Avx512>(w, n, panel))),
                                         _mm512_maddubs_epi16(second, weights(vector_at<Avx512>(w + kLine, n, panel))));
        sum[r * N + n] = _mm512_add_epi32(sum[r * N + n], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
      }
    }
  }
};

}  // namespace

const LinearKernels& linear_kernels_avx512(bool int8) {
  static constexpr LinearKernels fp32 = fp32_kernels<Avx512>(), bytes = int8_kernels<Int8, Avx512>();
  return int8 ? bytes : fp32;
}

}  // namespace glimodern
