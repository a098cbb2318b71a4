#include "simd/avx512.h"

#include "span_loss/focal.h"
#include "span_loss/kernels.h"

namespace glimodern {

double focal_negatives_avx512(float* z, int64_t n, const FocalParams& params, bool with_grad) {
  return focal_negatives<Avx512>(z, n, params, with_grad);
}

}  // namespace glimodern
