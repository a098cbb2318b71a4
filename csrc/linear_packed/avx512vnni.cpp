#include "linear_packed/int8_avx512.h"

namespace glimodern {
namespace {

struct Int8 : Int8Avx512 {
  // Assembler, because GCC 12 copies and spills the accumulators of the intrinsic: a third of the speed.
  static A add(W x, W w, A sum) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
  }
  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, A* sum) {
    step_by_groups<Int8, Avx512, R, N>(x, stride, w, panel, sum);
  }
};

}  // namespace

const LinearKernels& linear_kernels_avx512vnni() {
  static constexpr LinearKernels kernels = int8_kernels<Int8, Avx512>();
  return kernels;
}

}  // namespace glimodern
