#include "simd/avx2.h"

#include "span_loss/focal.h"
#include "span_loss/kernels.h"

namespace glimodern {

double focal_negatives_avx2(float* z, int64_t n, const FocalParams& params, bool with_grad) {
  return focal_negatives<Avx2>(z, n, params, with_grad);
}

}  // namespace glimodern
