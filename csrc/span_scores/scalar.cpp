// The readable truth of the span kernels: one loop a symbol, no blocking, sums in fp64 where they are local. Every
// other instruction set must agree.
#include "span_scores/scalar.h"

#include <algorithm>
#include <vector>

#include "span_scores/kernels.h"

namespace glimodern {
namespace {

template <class S, class W>
void score(const SpanInputs& in, const WordBlock& block, W* values) {
  for (int64_t i = block.first; i < block.last; ++i) {
    for (int64_t k = 0; k < block.widths(i, in.max_width); ++k) {
      for (int64_t t = 0; t < block.types; ++t) {
        const int64_t type = block.first_type + t;
        double logit = static_cast<const W*>(in.c)[type];
        for (int64_t h = 0; h < in.hidden; ++h) {
          logit += static_cast<double>(span_element<S, W>(in, i, k, h)) * element<S, W>(in.u, type * in.hidden + h);
        }
        values[block.offset + (i - block.first) * block.stride + k * block.types + t] = static_cast<W>(logit);
      }
    }
  }
}

template <class S, class W>
void grad(const SpanInputs& in, const WordBlock& block, const W* values, int64_t column, const SpanGradsOf<W>& grads) {
  const int64_t end = std::min(column + kSliceColumns, in.hidden);
  std::vector<double> du(static_cast<size_t>(block.types));  // of one column
  for (int64_t h = column; h < end; ++h) {
    std::fill(du.begin(), du.end(), 0.0);
    for (int64_t i = block.first; i < block.last; ++i) {
      for (int64_t k = 0; k < block.widths(i, in.max_width); ++k) {
        const W* g = values + block.offset + (i - block.first) * block.stride + k * block.types;
        const W x = span_element<S, W>(in, i, k, h);
        double dx = 0.0;
        for (int64_t t = 0; t < block.types; ++t) {
          dx += static_cast<double>(g[t]) * element<S, W>(in.u, (block.first_type + t) * in.hidden + h);
          du[static_cast<size_t>(t)] += static_cast<double>(g[t]) * x;
        }
        if (!(x > 0)) continue;
        if (in.dropout) dx *= in.keep_scale;
        grads.a[i * in.hidden + h] += static_cast<W>(dx);
        grads.b[(i + k) * in.hidden + h] += static_cast<W>(dx);
      }
    }
    for (int64_t t = 0; t < block.types; ++t) {
      grads.u[(block.first_type + t) * in.hidden + h] += static_cast<W>(du[static_cast<size_t>(t)]);
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
