#include "simd/avx512_bf16.h"

#include "linear_packed/tiles.h"

namespace glimodern {

const LinearKernels& linear_kernels_avx512_bf16() {
  using D = Fp32<Avx512Bf16Pairs>;  // whose "floats" are pairs of bf16 inputs
  static constexpr LinearKernels kernels =
      linear_kernels<D, Avx512, Bf16>(Dtype::bf16, prepare_floats<Avx512, Bf16, WeightDtype::bf16>);
  return kernels;
}

}  // namespace glimodern
