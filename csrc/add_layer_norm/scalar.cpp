#include <cmath>

#include "add_layer_norm/kernels.h"

namespace glimodern {
namespace {

template <class T>
void forward(const NormForward<T>& in, int64_t begin, int64_t end, Wide<T>* row) {
  using F = Wide<T>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * in.width;
    double total = 0.0, squares = 0.0;
    for (int64_t j = 0; j < in.width; ++j) {
      T sum = in.x[first + j];
      if (in.residual != nullptr) narrow(widen(sum) + widen(in.residual[first + j]), &sum);
      if (in.sum != nullptr) in.sum[first + j] = sum;
      row[j] = widen(sum);
      total += row[j];
    }
    const double mean = total / static_cast<double>(in.width);
    for (int64_t j = 0; j < in.width; ++j) squares += (row[j] - mean) * (row[j] - mean);
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(in.width) + in.eps);
    for (int64_t j = 0; j < in.width; ++j) {
      const F xhat = static_cast<F>((row[j] - mean) * rstd);
      narrow(xhat * in.weight[j] + (in.bias != nullptr ? in.bias[j] : F(0)), in.normed + first + j);
    }
    if (in.mean != nullptr) {
      in.mean[i] = static_cast<F>(mean);
      in.rstd[i] = static_cast<F>(rstd);
    }
  }
}

template <class T>
void backward(const NormBackward<T>& in, int64_t begin, int64_t end, Wide<T>* grad_weight, Wide<T>* grad_bias) {
  using F = Wide<T>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * in.width;
    const F rstd = in.rstd[i];
    double mean_g = 0.0, mean_gx = 0.0;
    for (int64_t j = 0; j < in.width; ++j) {
      const F dy = widen(in.grad_normed[first + j]), xhat = (widen(in.sum[first + j]) - in.mean[i]) * rstd;
      mean_g += static_cast<double>(dy * in.weight[j]) / static_cast<double>(in.width);
      mean_gx += static_cast<double>(dy * in.weight[j] * xhat) / static_cast<double>(in.width);
      if (grad_weight != nullptr) grad_weight[j] += dy * xhat;
      if (grad_bias != nullptr) grad_bias[j] += dy;
    }
    if (in.grad_x == nullptr) continue;
    for (int64_t j = 0; j < in.width; ++j) {
      const F g = widen(in.grad_normed[first + j]) * in.weight[j];
      const F xhat = (widen(in.sum[first + j]) - in.mean[i]) * rstd;
      const F dx = rstd * (g - static_cast<F>(mean_g) - xhat * static_cast<F>(mean_gx));
      narrow(dx + (in.grad_sum != nullptr ? widen(in.grad_sum[first + j]) : F(0)), in.grad_x + first + j);
    }
  }
}

}  // namespace

#define GLIMODERN_DEFINE(T)                                                                                        \
  void add_layer_norm_forward_scalar(const NormForward<T>& in, int64_t begin, int64_t end, Wide<T>* scratch,       \
                                     int64_t) {                                                                    \
    forward(in, begin, end, scratch);                                                                              \
  }                                                                                                                \
  void add_layer_norm_backward_scalar(const NormBackward<T>& in, int64_t begin, int64_t end, Wide<T>* grad_weight, \
                                      Wide<T>* grad_bias, Wide<T>*) {                                              \
    backward(in, begin, end, grad_weight, grad_bias);                                                              \
  }

GLIMODERN_DEFINE(float)
GLIMODERN_DEFINE(Bf16)
GLIMODERN_DEFINE(double)

}  // namespace glimodern
