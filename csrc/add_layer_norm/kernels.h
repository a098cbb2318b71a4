// The kernels of each instruction set, on rows [begin, end); add_layer_norm.cpp chooses.
#pragma once

#include "bf16.h"
#include "glimodern/add_layer_norm.h"

namespace glimodern {

template <class T>
struct NormForward {  // as AddLayerNormForward
  const T *x, *residual;
  const Wide<T>*weight, *bias;
  double eps;
  T *normed, *sum;
  Wide<T>*mean, *rstd;
  int64_t width;
};

template <class T>
struct NormBackward {  // as AddLayerNormBackward
  const T *grad_normed, *grad_sum, *sum;
  const Wide<T>*weight, *mean, *rstd;
  T* grad_x;
  int64_t width;
};

// scratch: 3 rows (forward) or one (backward) of stride numbers, `width` rounded up to a multiple of 32. grad_weight
// and grad_bias (or null): such a row each; must be zeros, and get the rows' share.
#define GLIMODERN_DECLARE_ADD_LAYER_NORM(isa, T)                                                               \
  void add_layer_norm_forward_##isa(const NormForward<T>&, int64_t begin, int64_t end, Wide<T>* scratch,       \
                                    int64_t stride);                                                           \
  void add_layer_norm_backward_##isa(const NormBackward<T>&, int64_t begin, int64_t end, Wide<T>* grad_weight, \
                                     Wide<T>* grad_bias, Wide<T>* scratch);

GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, Bf16)
GLIMODERN_DECLARE_ADD_LAYER_NORM(scalar, double)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx2, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx2, Bf16)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx512, float)
GLIMODERN_DECLARE_ADD_LAYER_NORM(avx512, Bf16)
#undef GLIMODERN_DECLARE_ADD_LAYER_NORM

}  // namespace glimodern
