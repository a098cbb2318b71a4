#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

struct Int8 : Int8Avx512 {
  static constexpr int rows = 6;  // from 7 rows on, GCC 12 spills accumulators

  static W products(W x, W w) { return _mm512_maddubs_epi16(x, w); }
  static W plus16(W x, W y) { return _mm512_add_epi16(x, y); }
  static A widen(W x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }
  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, A* sum) {
    step_by_two_groups<Int8, Avx512, R, N>(x, stride, w, panel, sum);
  }
};

}  // namespace

const LinearKernels& linear_kernels_avx512(WeightDtype dtype) {
  static constexpr LinearKernels fp32 = fp32_kernels<Avx512>(), bf16 = bf16_by_fma_kernels<Avx512>(),
                                 int8 = int8_kernels<Int8, Avx512>();
  return dtype == WeightDtype::int8 ? int8 : dtype == WeightDtype::bf16 ? bf16 : fp32;
}

}  // namespace glimodern
