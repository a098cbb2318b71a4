#include "span_scores/scalar.h"

#include <algorithm>

#include "span_scores/kernels.h"

namespace glimodern {

void score_block_scalar(const SpanInputs& in, const WordBlock& block, float* values, float*) {
  for (int64_t i = block.first; i < block.last; ++i) {
    for (int64_t k = 0; k < block.widths(i, in.max_width); ++k) {
      for (int64_t t = 0; t < block.types; ++t) {
        const float* u = in.u + (block.first_type + t) * in.hidden;
        double logit = in.c[block.first_type + t];
        for (int64_t h = 0; h < in.hidden; ++h) logit += static_cast<double>(span_element(in, i, k, h)) * u[h];
        values[block.offset + (i - block.first) * block.stride + k * block.types + t] = static_cast<float>(logit);
      }
    }
  }
}

void grad_slice_scalar(const SpanInputs& in, const WordBlock* blocks, int64_t count, const float* values,
                       int64_t column, const SpanGrads& grads, float*) {
  const int64_t end = std::min(column + kSliceColumns, in.hidden);
  for (const WordBlock* block = blocks; block != blocks + count; ++block) {
    for (int64_t i = block->first; i < block->last; ++i) {
      for (int64_t k = 0; k < block->widths(i, in.max_width); ++k) {
        const float* g = values + block->offset + (i - block->first) * block->stride + k * block->types;
        for (int64_t h = column; h < end; ++h) {
          const float x = span_element(in, i, k, h);
          double dx = 0.0;
          for (int64_t t = 0; t < block->types; ++t) {
            const int64_t at = (block->first_type + t) * in.hidden + h;
            dx += static_cast<double>(g[t]) * in.u[at];
            grads.u[at] += g[t] * x;
          }
          if (!(x > 0.0f)) continue;
          if (in.dropout) dx *= in.keep_scale;
          grads.a[i * in.hidden + h] += static_cast<float>(dx);
          grads.b[(i + k) * in.hidden + h] += static_cast<float>(dx);
        }
      }
    }
  }
}

}  // namespace glimodern
