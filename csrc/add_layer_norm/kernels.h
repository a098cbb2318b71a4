// The kernels of each instruction set, on rows [begin, end); add_layer_norm.cpp selects one.
#pragma once

#include "bf16.h"
#include "glimodern/add_layer_norm.h"

namespace glimodern {

template <class T>
struct NormForward {  // see AddLayerNormForward
  const T *x, *residual;
  Dtype weight_dtype;
  const void *weight, *bias;
  double eps;
  T *normed, *sum;
  Accumulator<T>*mean, *rstd;
  int64_t width;
  bool rms;
};

template <class T>
struct NormBackward {  // see AddLayerNormBackward
  const T *grad_normed, *grad_sum, *sum;
  const Accumulator<T>*weight, *mean, *rstd;
  T* grad_x;
  int64_t width;
  bool rms;
};

// scratch: rows of `stride` elements, `width` rounded up to a multiple of 32; 3 forward, 1 backward. grad_weight and
// grad_bias (or null): one such row each, zeroed by the caller, set to the sums over these rows.
#define GLIMODERN_DECLARE_ADD_LAYER_NORM(isa, T)                                                                      \
  void add_layer_norm_forward_##isa(const NormForward<T>&, int64_t begin, int64_t end, Accumulator<T>* scratch,       \
                                    int64_t stride);                                                                  \
  void add_layer_norm_backward_##isa(const NormBackward<T>&, int64_t begin, int64_t end, Accumulator<T>* grad_weight, \
                                     Accumulator<T>* grad_bias, Accumulator<T>* scratch);

GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, Bf16)
GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, double)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx2, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx2, Bf16)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx512, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx512, Bf16)
#undef GLIMODERN_DECLARE_ADD_LAYER_NORM

}  // namespace glimodern
