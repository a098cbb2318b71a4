// add_layer_norm: sum = x + residual; normed = xhat * weight + bias by row, with xhat = (sum - mean) * rstd and
// rstd = 1 / sqrt(variance + eps). RMS norm is the same with a mean of 0, so that the variance is the mean square.
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

// Matrices are [rows, width], contiguous, in the storage dtype; mean and rstd [rows] in the accumulator dtype. Null
// inputs are absent, null outputs are not computed.
struct AddLayerNormForward {
  const void* x;
  const void* residual;  // or null
  Dtype weight_dtype;    // fp32 or bf16; fp64 if x is
  const void* weight;    // [width]
  const void* bias;      // [width], or null
  double eps;
  void* normed;
  void* sum;          // or null
  void *mean, *rstd;  // or null
  int64_t rows, width;
  bool rms;  // without mean
};

// With g = grad_normed * weight: grad_x = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum, which is also the
// residual's gradient, without mean(g) for RMS norm; grad_weight = column sums of grad_normed * xhat; grad_bias =
// column sums of grad_normed.
struct AddLayerNormBackward {
  const void* grad_normed;
  const void* grad_sum;  // or null
  const void* sum;
  const void* weight;       // [width], in the accumulator dtype
  const void *mean, *rstd;  // mean is not read for RMS norm
  void* grad_x;             // or null
  void* grad_weight;        // [width], in the accumulator dtype, or null
  void* grad_bias;          // like grad_weight, or null
  int64_t rows, width;
  bool rms;
};

void add_layer_norm_forward(Dtype, const AddLayerNormForward&, int threads);

// Deterministic: the same bits for every number of threads.
void add_layer_norm_backward(Dtype, const AddLayerNormBackward&, int threads);

}  // namespace glimodern
