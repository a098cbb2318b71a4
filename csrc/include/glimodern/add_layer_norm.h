// add_layer_norm: sum = x + residual, normed = xhat * weight + bias with xhat = (sum - mean) * rstd by row, and
// rstd = 1 / sqrt(variance + eps).
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

// Matrices [rows, width] contiguous, in the storage type; weight and bias [width], mean and rstd [rows] in fp32 (fp64
// for fp64). Null: there is none, or it is not wanted.
struct AddLayerNormForward {
  const void* x;
  const void* residual;  // or null
  const void* weight;
  const void* bias;  // or null
  double eps;
  void* normed;
  void* sum;          // or null
  void *mean, *rstd;  // or both null
  int64_t rows, width;
};

// With g = grad_normed * weight: grad_x (= the residual's) = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum,
// grad_weight = column sums of grad_normed * xhat, grad_bias = column sums of grad_normed.
struct AddLayerNormBackward {
  const void* grad_normed;
  const void* grad_sum;  // or null
  const void* sum;
  const void* weight;
  const void *mean, *rstd;
  void* grad_x;       // or null
  void* grad_weight;  // [width] fp32 (fp64 for fp64), or null
  void* grad_bias;    // like grad_weight, or null
  int64_t rows, width;
};

void add_layer_norm_forward(Dtype, const AddLayerNormForward&, int threads);

// Deterministic: the same bits for every number of threads.
void add_layer_norm_backward(Dtype, const AddLayerNormBackward&, int threads);

}  // namespace glimodern
