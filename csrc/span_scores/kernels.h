// The kernels of each instruction set; csrc/span.cpp makes the tables.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

#define GLIMODERN_DECLARE_SPAN_SCORES(isa)                                                              \
  void score_block_##isa(const SpanInputs&, const WordBlock&, float* values, float* scratch);           \
  void grad_slice_##isa(const SpanInputs&, const WordBlock* blocks, int64_t count, const float* values, \
                        int64_t column, const SpanGrads& grads, float* scratch);                        \
  size_t span_scratch_floats_##isa();

template <class Acc>
void score_block_scalar(const SpanInputs&, const WordBlock&, Acc* values, float* scratch);
template <class Acc>
void grad_slice_scalar(const SpanInputs&, const WordBlock* blocks, int64_t count, const Acc* values, int64_t column,
                       const SpanGradsOf<Acc>& grads, float* scratch);
GLIMODERN_DECLARE_SPAN_SCORES(avx2)
GLIMODERN_DECLARE_SPAN_SCORES(avx512)
#undef GLIMODERN_DECLARE_SPAN_SCORES

}  // namespace glimodern
