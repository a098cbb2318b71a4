// span_vectors: the hidden vectors of selected spans, a tile of rows at a time, and the gradients of the words.
//
//     x(r) = drop(relu(a_start + b_end))      0 for a row without a span (end < 0)
//
// The second linear layer, S = x W2^T + b2, is PyTorch's: glimodern/ops/_span_vectors.py calls it tile by tile. a and b
// are stored in fp32, bf16 or fp64. Everything else is in the accumulator dtype: fp32, or fp64 for fp64, which runs in
// the scalar kernels (for gradcheck).
#pragma once

#include <cstdint>

#include "glimodern/dropout.h"
#include "glimodern/dtype.h"

namespace glimodern {

struct SpanRows {
  Dtype dtype;           // of a and b
  const void* a;         // [words, hidden]
  const void* b;         // [words, hidden]
  const int32_t* start;  // [rows] first word
  const int32_t* end;    // [rows] last word, or negative: no span
  int64_t rows, hidden;
  int64_t max_width;  // a span's row in the dropout mask is start * max_width + end - start
  Dropout dropout;
};

// x [rows, hidden] <- the spans' hidden vectors.
template <class Acc>
void span_hidden(const SpanRows&, Acc* x, int threads);

// da[start], db[end] += dx / (1 - p) where x > 0, row after row: the same bits for every number of threads.
template <class Acc>
void span_hidden_backward(const SpanRows&, const Acc* x, const Acc* dx, Acc* da, Acc* db, int threads);

}  // namespace glimodern
