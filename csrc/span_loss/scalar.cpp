#include <cmath>

#include "span_loss/kernels.h"

namespace glimodern {

// loss = s^gamma * softplus(x), s = sigmoid(x);   slope = s^gamma * (gamma * (1 - s) * softplus(x) + s)
FocalPoint focal_point(float x, float gamma) {
  const float e = std::exp(-std::fabs(x));
  const float log1p_e = std::log1p(e);
  const float softplus = (x < 0.0f ? 0.0f : x) + log1p_e;  // keeps NaN
  const float s = (x < 0.0f ? e : 1.0f) / (1.0f + e);
  if (gamma == 0.0f) return {softplus, s};
  const float rest = (x < 0.0f ? 1.0f : e) / (1.0f + e);  // 1 - s without cancellation
  const float log_s = (x < 0.0f ? x : 0.0f) - log1p_e;
  const float power = std::exp(gamma * log_s);
  return {power * softplus, power * (gamma * rest * softplus + s)};
}

double focal_negatives_scalar(float* z, int64_t n, const FocalParams& params, bool with_grad) {
  double total = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    const FocalPoint point = focal_point(z[j], params.gamma);
    total += point.loss;
    if (with_grad) z[j] = params.negative_weight * point.slope;
  }
  return params.negative_weight * total;
}

}  // namespace glimodern
