#include <cmath>

#include "span_loss/kernels.h"

namespace glimodern {

// loss = s^gamma * softplus(x), s = sigmoid(x);   slope = s^gamma * (gamma * (1 - s) * softplus(x) + s)
template <class Acc>
FocalPoint<Acc> focal_point(Acc x, double gamma) {
  const Acc one = 1, zero = 0;
  const Acc e = std::exp(-std::fabs(x));
  const Acc log1p_e = std::log1p(e);
  const Acc softplus = (x < zero ? zero : x) + log1p_e;  // keeps NaN
  const Acc s = (x < zero ? e : one) / (one + e);
  if (gamma == 0.0) return {softplus, s};
  const Acc rest = (x < zero ? one : e) / (one + e);  // 1 - s without cancellation
  const Acc log_s = (x < zero ? x : zero) - log1p_e;
  const Acc power = std::exp(static_cast<Acc>(gamma) * log_s);
  return {power * softplus, power * (static_cast<Acc>(gamma) * rest * softplus + s)};
}

template <class Acc>
double focal_negatives_scalar(Acc* z, int64_t n, const FocalParams& params, bool with_grad) {
  double total = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    const FocalPoint<Acc> point = focal_point(z[j], params.gamma);
    total += point.loss;
    if (with_grad) z[j] = static_cast<Acc>(params.negative_weight * point.slope);
  }
  return params.negative_weight * total;
}

template FocalPoint<float> focal_point(float, double);
template FocalPoint<double> focal_point(double, double);
template double focal_negatives_scalar(float*, int64_t, const FocalParams&, bool);
template double focal_negatives_scalar(double*, int64_t, const FocalParams&, bool);

}  // namespace glimodern
