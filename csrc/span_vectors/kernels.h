// The kernels of each instruction set; span_vectors.cpp makes the table.
#pragma once

#include "glimodern/span_vectors.h"

namespace glimodern {

#define GLIMODERN_DECLARE_SPAN_VECTORS(isa)                                                                           \
  void hidden_row_##isa(const SpanRows&, int64_t row, float* x);                                                      \
  void hidden_slice_backward_##isa(const SpanRows&, const float* x, const float* dx, int64_t column, int64_t columns, \
                                   float* da, float* db);

template <class Acc>
void hidden_row_scalar(const SpanRows&, int64_t row, Acc* x);
template <class Acc>
void hidden_slice_backward_scalar(const SpanRows&, const Acc* x, const Acc* dx, int64_t column, int64_t columns,
                                  Acc* da, Acc* db);
GLIMODERN_DECLARE_SPAN_VECTORS(avx2)
GLIMODERN_DECLARE_SPAN_VECTORS(avx512)
#undef GLIMODERN_DECLARE_SPAN_VECTORS

}  // namespace glimodern
