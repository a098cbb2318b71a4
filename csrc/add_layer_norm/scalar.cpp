#include <cmath>

#include "add_layer_norm/kernels.h"
#include "call_isa.h"

namespace glimodern {
namespace {

// out [width] <- the weight or the bias.
template <class Acc>
void widen_row(const void* row, Dtype dtype, int64_t width, Acc* out) {
  with_dtype(dtype, [=](auto element) {
    const auto* elements = static_cast<const decltype(element)*>(row);
    for (int64_t j = 0; j < width; ++j) out[j] = static_cast<Acc>(widen(elements[j]));
  });
}

template <class T>
void forward(const NormForward<T>& in, int64_t begin, int64_t end, Accumulator<T>* scratch, int64_t stride) {
  using Acc = Accumulator<T>;
  Acc *const row = scratch, *const weight = scratch + stride, *const bias = scratch + 2 * stride;
  widen_row(in.weight, in.weight_dtype, in.width, weight);
  if (in.bias != nullptr) widen_row(in.bias, in.weight_dtype, in.width, bias);
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
    const double mean = in.rms ? 0.0 : total / static_cast<double>(in.width);
    for (int64_t j = 0; j < in.width; ++j) squares += (row[j] - mean) * (row[j] - mean);
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(in.width) + in.eps);
    for (int64_t j = 0; j < in.width; ++j) {
      const Acc xhat = static_cast<Acc>((row[j] - mean) * rstd);
      narrow(xhat * weight[j] + (in.bias != nullptr ? bias[j] : Acc(0)), in.normed + first + j);
    }
    if (in.mean != nullptr) in.mean[i] = static_cast<Acc>(mean);
    if (in.rstd != nullptr) in.rstd[i] = static_cast<Acc>(rstd);
  }
}

template <class T>
void backward(const NormBackward<T>& in, int64_t begin, int64_t end, Accumulator<T>* grad_weight,
              Accumulator<T>* grad_bias) {
  using Acc = Accumulator<T>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * in.width;
    const Acc mean = in.rms ? Acc(0) : in.mean[i], rstd = in.rstd[i];
    double mean_g = 0.0, mean_gx = 0.0;
    for (int64_t j = 0; j < in.width; ++j) {
      const Acc dy = widen(in.grad_normed[first + j]), xhat = (widen(in.sum[first + j]) - mean) * rstd;
      if (!in.rms) mean_g += static_cast<double>(dy * in.weight[j]) / static_cast<double>(in.width);
      mean_gx += static_cast<double>(dy * in.weight[j] * xhat) / static_cast<double>(in.width);
      if (grad_weight != nullptr) grad_weight[j] += dy * xhat;
      if (grad_bias != nullptr) grad_bias[j] += dy;
    }
    if (in.grad_x == nullptr) continue;
    for (int64_t j = 0; j < in.width; ++j) {
      const Acc g = widen(in.grad_normed[first + j]) * in.weight[j];
      const Acc xhat = (widen(in.sum[first + j]) - mean) * rstd;
      const Acc dx = rstd * (g - static_cast<Acc>(mean_g) - xhat * static_cast<Acc>(mean_gx));
      narrow(dx + (in.grad_sum != nullptr ? widen(in.grad_sum[first + j]) : Acc(0)), in.grad_x + first + j);
    }
  }
}

}  // namespace

#define GLIMODERN_DEFINE(T)                                                                                         \
  void add_layer_norm_forward_scalar(const NormForward<T>& in, int64_t begin, int64_t end, Accumulator<T>* scratch, \
                                     int64_t stride) {                                                              \
    forward(in, begin, end, scratch, stride);                                                                       \
  }                                                                                                                 \
  void add_layer_norm_backward_scalar(const NormBackward<T>& in, int64_t begin, int64_t end,                        \
                                      Accumulator<T>* grad_weight, Accumulator<T>* grad_bias, Accumulator<T>*) {    \
    backward(in, begin, end, grad_weight, grad_bias);                                                               \
  }

GLIMODERN_DEFINE(float)
GLIMODERN_DEFINE(Bf16)
GLIMODERN_DEFINE(double)

}  // namespace glimodern
