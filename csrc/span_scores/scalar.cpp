// The reference implementation of the span kernels: one loop per symbol, no blocking, local sums in fp64. Every other
// instruction set must agree with it.
#include "span_scores/scalar.h"

#include <algorithm>
#include <vector>

#include "span_scores/kernels.h"

namespace glimodern {
namespace {

template <class S, class Acc>
void score(const SpanInputs& in, const WordBlock& block, Acc* values) {
  for (int64_t i = block.first; i < block.last; ++i) {
    for (int64_t k = 0; k < block.widths(i, in.max_width); ++k) {
      for (int64_t t = 0; t < block.types; ++t) {
        const int64_t type = block.first_type + t;
        double logit = static_cast<const Acc*>(in.c)[type];
        for (int64_t h = 0; h < in.hidden; ++h) {
          logit += static_cast<double>(span_element<S, Acc>(in, i, k, h)) * element<S, Acc>(in.u, type * in.hidden + h);
        }
        values[block.offset + (i - block.first) * block.stride + k * block.types + t] = static_cast<Acc>(logit);
      }
    }
  }
}

template <class S, class Acc>
void grad(const SpanInputs& in, const WordBlock& block, const Acc* values, int64_t column,
          const SpanGradsOf<Acc>& grads) {
  const int64_t end = std::min(column + kSliceColumns, in.hidden);
  std::vector<double> du(static_cast<size_t>(block.types));  // of one column
  for (int64_t h = column; h < end; ++h) {
    std::fill(du.begin(), du.end(), 0.0);
    for (int64_t i = block.first; i < block.last; ++i) {
      for (int64_t k = 0; k < block.widths(i, in.max_width); ++k) {
        const Acc* g = values + block.offset + (i - block.first) * block.stride + k * block.types;
        const Acc x = span_element<S, Acc>(in, i, k, h);
        double dx = 0.0;
        for (int64_t t = 0; t < block.types; ++t) {
          dx += static_cast<double>(g[t]) * element<S, Acc>(in.u, (block.first_type + t) * in.hidden + h);
          du[static_cast<size_t>(t)] += static_cast<double>(g[t]) * x;
        }
        if (!(x > 0)) continue;
        if (in.dropout.enabled) dx *= in.dropout.keep_scale;
        grads.a[i * in.hidden + h] += static_cast<Acc>(dx);
        grads.b[(i + k) * in.hidden + h] += static_cast<Acc>(dx);
      }
    }
    for (int64_t t = 0; t < block.types; ++t) {
      grads.u[(block.first_type + t) * in.hidden + h] += static_cast<Acc>(du[static_cast<size_t>(t)]);
    }
  }
}

}  // namespace

template <>
void score_block_scalar(const SpanInputs& in, const WordBlock& block, float* values, float*) {
  if (in.dtype == Dtype::bf16) return score<Bf16>(in, block, values);
  score<float>(in, block, values);
}

template <>
void score_block_scalar(const SpanInputs& in, const WordBlock& block, double* values, float*) {
  score<double>(in, block, values);
}

template <>
void grad_slice_scalar(const SpanInputs& in, const WordBlock* blocks, int64_t count, const float* values,
                       int64_t column, const SpanGrads& grads, float*) {
  for (const WordBlock* block = blocks; block != blocks + count; ++block) {
    if (in.dtype == Dtype::bf16) {
      grad<Bf16>(in, *block, values, column, grads);
    } else {
      grad<float>(in, *block, values, column, grads);
    }
  }
}

template <>
void grad_slice_scalar(const SpanInputs& in, const WordBlock* blocks, int64_t count, const double* values,
                       int64_t column, const SpanGradsOf<double>& grads, float*) {
  for (const WordBlock* block = blocks; block != blocks + count; ++block) {
    grad<double>(in, *block, values, column, grads);
  }
}

}  // namespace glimodern
