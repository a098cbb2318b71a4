// What the tiled span kernels share, for every vector class V (csrc/simd/): block sizes, packing of columns, and the
// spans of a block with their vectors.
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge copies. For the same reason nothing here instantiates code of the standard library.
#pragma once

#include "bf16.h"
#include "caches.h"
#include "dropout_mask.h"
#include "glimodern/span.h"
#include "integer_math.h"

namespace {

using glimodern::Dtype;
using glimodern::half_l1_bytes;
using glimodern::kBlockWords;
using glimodern::kSliceColumns;
using glimodern::SpanGrads;
using glimodern::SpanInputs;
using glimodern::WordBlock;

constexpr int64_t kWidthChunk = 16;                      // widths k at a time, so that b's rows fit the scratch
constexpr int64_t kEndRows = kBlockWords + kWidthChunk;  // rows of b that a block and a chunk of widths read
constexpr int64_t kTypeChunk = 32;                       // rows of u in scratch at a time
constexpr int64_t kGroupSpans = 24;                      // a multiple of every V::tile_spans
constexpr int64_t kGradSpans = 24;
constexpr int64_t kBlockSpans = kBlockWords * kWidthChunk;

// Columns of a, b and u that the scores go through at a time. The u of 9 types takes at most 9/16 of L1.
template <class V>
int64_t score_columns() {
  constexpr int64_t kStep = 64;
  static_assert(V::max_score_columns % kStep == 0 && kStep % V::width == 0, "columns are whole vectors");
  return min(V::max_score_columns, max(half_l1_bytes() / 32 / kStep, 1) * kStep);
}

template <class V>
size_t scratch_floats() {
  const int64_t sums = 2 * kBlockSpans * kTypeChunk;  // twice: tiles are padded to groups of sums
  const int64_t score = (kBlockWords + kEndRows + kTypeChunk + kGroupSpans) * V::max_score_columns + sums;
  const int64_t grad = (2 * kBlockWords + 2 * kEndRows + 2 * kTypeChunk + kGradSpans) * kSliceColumns;
  return static_cast<size_t>(max(score, grad));
}

// A matrix of fp32 or bf16, [rows, stride].
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t stride;

  const char* address(int64_t row, int64_t column) const {
    return static_cast<const char*>(data) + (row * stride + column) * (dtype == Dtype::bf16 ? 2 : 4);
  }
};

// Columns [column, column + columns) of `rows` rows as fp32 vectors, zero-padded to `vectors` vectors. Vector v of row
// r goes to r * row_step + v * vector_step.
template <class V>
void pack(const Matrix& from, int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t vectors, float* to,
          int64_t row_step, int64_t vector_step) {
  const int64_t full = columns / V::width;
  for (int64_t r = 0; r < rows; ++r, to += row_step) {
    const char* line = from.address(row + r, column);
    float* q = to;
    if (from.dtype == Dtype::bf16) {
      const Bf16* p = reinterpret_cast<const Bf16*>(line);
      for (int64_t v = 0; v < full; ++v, q += vector_step) V::store(q, V::loadu(p + v * V::width));
      for (int64_t v = full; v < vectors; ++v, q += vector_step) {
        alignas(64) Bf16 rest[V::width] = {};
        for (int64_t h = v * V::width; h < columns; ++h) rest[h - v * V::width] = p[h];
        V::store(q, V::loadu(rest));
      }
    } else {
      const float* p = reinterpret_cast<const float*>(line);
      for (int64_t v = 0; v < full; ++v, q += vector_step) V::store(q, V::loadu(p + v * V::width));
      for (int64_t v = full; v < vectors; ++v, q += vector_step) {
        V::store(q, V::zero());
        for (int64_t h = v * V::width; h < columns; ++h) q[h - v * V::width] = p[h];
      }
    }
  }
}

struct Span {
  int start, end;  // rows of the packed a and b
  int64_t value;   // where the span's row of values begins
};

// The spans of a block with widths [k0, k0 + widths), ordered by (word, width).
inline int list_spans(const SpanInputs& in, const WordBlock& block, int64_t k0, int64_t widths, Span* spans) {
  int count = 0;
  for (int64_t i = block.first; i < block.last; ++i) {
    const int64_t end = min(block.widths(i, in.max_width), k0 + widths);
    for (int64_t k = k0; k < end; ++k) {
      const int64_t at = i - block.first;
      spans[count++] = {static_cast<int>(at), static_cast<int>(at + k - k0),
                        block.offset + at * block.stride + k * block.types};
    }
  }
  return count;
}

// The span's row in the dropout mask.
inline uint64_t mask_row(const SpanInputs& in, const WordBlock& block, int64_t k0, const Span& span) {
  return static_cast<uint64_t>((block.first + span.start) * in.max_width + k0 + span.end - span.start);
}

// x <- drop(relu(a + b)), `columns` columns (a multiple of V::width) from `column` of in.hidden on. row: mask_row().
template <class V>
void span_vector(const SpanInputs& in, const float* a, const float* b, uint64_t row, int64_t column, int64_t columns,
                 float* x) {
  if (!in.dropout.enabled) {
    for (int64_t h = 0; h < columns; h += V::width)
      V::store(x + h, V::max(V::zero(), V::add(V::loadu(a + h), V::loadu(b + h))));
    return;
  }
  using I = typename V::I;
  I counter = column_counters<V>(dropout_key(row, in.dropout.seed), column);
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden);
  const I threshold = V::set1(in.dropout.threshold);
  const auto scale = V::set1(static_cast<float>(in.dropout.keep_scale));
  for (int64_t h = 0; h < columns; h += V::width) {
    const auto kept = V::mul(scale, V::max(V::zero(), V::add(V::loadu(a + h), V::loadu(b + h))));
    V::store(x + h, V::where_at_least(mix32_lanes<V>(counter), threshold, kept));
    counter = V::add(counter, step);
  }
}

}  // namespace
