#include "simd/avx512_bf16.h"

#include "linear_packed/multiply.h"

namespace glimodern {

const LinearKernels& linear_kernels_avx512_bf16() {
  using D = Fp32<Avx512Bf16Pairs>;  // multiplies pairs of bf16 as it does floats
  static constexpr LinearKernels kernels =
      linear_kernels<D, Avx512, Bf16>(Dtype::bf16, prepare_floats<Avx512, Bf16, WeightDtype::bf16>);
  return kernels;
}

}  // namespace glimodern
