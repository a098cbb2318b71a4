// span_vectors: hidden values of chosen spans, a tile of rows at a time, and their gradients' way back to the words.
//
//     x(r) = drop(relu(a_start + b_end))      0 for a row without a span (end < 0)
//
// The second Linear, S = x W2^T + b2, is the matrix library's: glimodern/ops/_span_vectors.py calls it tile by tile. a
// and b are stored as fp32, bf16 or fp64; all else is "wide": fp32, or fp64 for fp64, which runs in the scalar kernels
// (for gradcheck).
#pragma once

#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

struct SpanRows {
  Dtype dtype;           // of a and b
  const void* a;         // [words, hidden]
  const void* b;         // [words, hidden]
  const int32_t* start;  // [rows] first word
  const int32_t* end;    // [rows] last word, or negative: no span
  int64_t rows, hidden;
  int64_t max_width;    // a span's number in the dropout mask is start * max_width + end - start
  bool dropout;         // whether elements are dropped at all
  uint32_t drop_below;  // an element whose hash is below this is dropped: floor(p * 2^32)
  double keep_scale;    // 1 / (1 - p)
  uint32_t seed;        // low 32 bits
};

// x [rows, hidden] <- the spans' hidden values.
template <class W>
void span_hidden(const SpanRows&, W* x, int threads);

// da[start], db[end] += dx / (1 - p) where x > 0, row after row: the same bits for every number of threads.
template <class W>
void span_hidden_backward(const SpanRows&, const W* x, const W* dx, W* da, W* db, int threads);

}  // namespace glimodern
