// The tiled gradients of the span scores, for every vector class V (csrc/simd/). One task owns kSliceColumns columns
// and goes through all words in order: no two tasks write to one address.
#pragma once

#include "simd/rows.h"
#include "span_scores/blocks.h"

namespace {

// Columns [column, column + columns) of `rows` rows of `to` += scale * from [rows, padded].
template <class V>
void add_scaled(const float* from, int64_t rows, int64_t padded, int64_t column, int64_t columns, int64_t stride,
                float scale, float* to) {
  const auto factor = V::set1(scale);
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = from + r * padded;
    float* q = to + r * stride + column;
    int64_t h = 0;
    for (; h + V::width <= columns; h += V::width) V::storeu(q + h, V::fma(factor, V::load(p + h), V::loadu(q + h)));
    for (; h < columns; ++h) q[h] = __builtin_fmaf(scale, p[h], q[h]);
  }
}

// du[t] += the sum over spans of g[s][t] * x[s], for T types and V::grad_vectors vectors of columns.
template <class V, int T>
void type_grad_tile(const float* const* g, int type, const float* x, int count, float* du) {
  constexpr int N = V::grad_vectors;
  using F = typename V::F;
  F sum[T * N];
#pragma GCC unroll 64
  for (int n = 0; n < T * N; ++n) sum[n] = V::load(du + (type + n / N) * kSliceColumns + n % N * V::width);
  for (int s = 0; s < count; ++s) {
    F row[N];
#pragma GCC unroll 64
    for (int v = 0; v < N; ++v) row[v] = V::load(x + s * kSliceColumns + v * V::width);
#pragma GCC unroll 64
    for (int t = 0; t < T; ++t) {
      const F w = V::set1(g[s][type + t]);
#pragma GCC unroll 64
      for (int v = 0; v < N; ++v) sum[t * N + v] = V::fma(w, row[v], sum[t * N + v]);
    }
  }
#pragma GCC unroll 64
  for (int n = 0; n < T * N; ++n) V::store(du + (type + n / N) * kSliceColumns + n % N * V::width, sum[n]);
}

template <class V, int T>
struct TypeGrad {  // run(): type_grad_tile of a number of types known at run time, 1 <= types <= T
  static void run(int types, const float* const* g, int type, const float* x, int count, float* du) {
    if (types == T) return type_grad_tile<V, T>(g, type, x, count, du);
    TypeGrad<V, T - 1>::run(types, g, type, x, count, du);
  }
};
template <class V>
struct TypeGrad<V, 0> {
  static void run(int, const float* const*, int, const float*, int, float*) {}
};

// da[start], db[end] += the sum over types of g[s][t] * u[t] where x[s] > 0, for R spans and V::grad_vectors vectors.
// The caller applies dropout's scale.
template <class V, int R>
void word_grad_tile(const Span* spans, const float* const* g, int64_t types, const float* u, const float* x, float* da,
                    float* db) {
  constexpr int N = V::grad_vectors;
  using F = typename V::F;
  F sum[R * N];
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) sum[n] = V::zero();
  for (int64_t t = 0; t < types; ++t) {
    F row[N];
#pragma GCC unroll 64
    for (int v = 0; v < N; ++v) row[v] = V::load(u + t * kSliceColumns + v * V::width);
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      const F w = V::set1(g[r][t]);
#pragma GCC unroll 64
      for (int v = 0; v < N; ++v) sum[r * N + v] = V::fma(w, row[v], sum[r * N + v]);
    }
  }
#pragma GCC unroll 64
  for (int v = 0; v < N; ++v) {
    F word = V::zero();  // sum over the consecutive spans that start at one word
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      const F y = V::where_positive(V::load(x + r * kSliceColumns + v * V::width), sum[r * N + v]);
      float* end = db + spans[r].end * kSliceColumns + v * V::width;
      V::store(end, V::add(V::load(end), y));
      word = V::add(word, y);
      if (r + 1 == R || spans[r + 1].start != spans[r].start) {
        float* start = da + spans[r].start * kSliceColumns + v * V::width;
        V::store(start, V::add(V::load(start), word));
        word = V::zero();
      }
    }
  }
}

template <class V, int R>
struct WordGrad {  // run(): word_grad_tile of a number of spans known at run time, 1 <= count <= R
  static void run(int count, const Span* spans, const float* const* g, int64_t types, const float* u, const float* x,
                  float* da, float* db) {
    if (count == R) return word_grad_tile<V, R>(spans, g, types, u, x, da, db);
    WordGrad<V, R - 1>::run(count, spans, g, types, u, x, da, db);
  }
};
template <class V>
struct WordGrad<V, 0> {
  static void run(int, const Span*, const float* const*, int64_t, const float*, const float*, float*, float*) {}
};

template <class V>
void grad_slice(const SpanInputs& in, const WordBlock* blocks, int64_t count, const float* values, int64_t column,
                const SpanGrads& grads, float* scratch) {
  constexpr int64_t S = kSliceColumns;
  constexpr int64_t step = V::grad_vectors * V::width;
  static_assert(S % step == 0, "a slice is a whole number of vector groups");
  const int64_t columns = min(S, in.hidden - column);
  const float scale = in.dropout.enabled ? static_cast<float>(in.dropout.keep_scale) : 1.0f;
  const Matrix all_a{in.a, in.dtype, in.hidden}, all_b{in.b, in.dtype, in.hidden}, all_u{in.u, in.dtype, in.hidden};
  float* a = scratch;
  float* b = a + kBlockWords * S;
  float* da = b + kEndRows * S;
  float* db = da + kBlockWords * S;
  float* u = db + kEndRows * S;
  float* du = u + kTypeChunk * S;
  float* x = du + kTypeChunk * S;
  Span spans[kBlockSpans];
  const float* g[kGradSpans];
  for (const WordBlock* block = blocks; block != blocks + count; ++block) {
    const int64_t words = block->last - block->first;
    for (int64_t k0 = 0; k0 < block->widths(block->first, in.max_width); k0 += kWidthChunk) {
      const int64_t widths = min(kWidthChunk, in.max_width - k0);
      const int span_count = list_spans(in, *block, k0, widths, spans);
      const int64_t ends = min(words + widths - 1, block->text_end - block->first - k0);
      pack<V>(all_a, block->first, words, column, columns, S / V::width, a, S, V::width);
      pack<V>(all_b, block->first + k0, ends, column, columns, S / V::width, b, S, V::width);
      clear<V>(da, words * S);
      clear<V>(db, ends * S);
      for (int64_t t0 = 0; t0 < block->types; t0 += kTypeChunk) {
        const int64_t types = min(kTypeChunk, block->types - t0);
        pack<V>(all_u, block->first_type + t0, types, column, columns, S / V::width, u, S, V::width);
        clear<V>(du, types * S);
        for (int s = 0; s < span_count; s += kGradSpans) {
          const int group = static_cast<int>(min(kGradSpans, span_count - s));
          for (int n = 0; n < group; ++n) {
            const Span& span = spans[s + n];
            span_vector<V>(in, a + span.start * S, b + span.end * S, mask_row(in, *block, k0, span), column, S,
                           x + n * S);
            g[n] = values + span.value + t0;
          }
          for (int64_t h = 0; h < S; h += step) {
            const int tiles = static_cast<int>(ceil_div(types, V::grad_rows));
            int type = 0;
            for (int n = 0; n < tiles; ++n) {
              const int tile_types = static_cast<int>(ceil_div(types - type, tiles - n));
              TypeGrad<V, V::grad_rows>::run(tile_types, g, type, x + h, group, du + h);
              type += tile_types;
            }
            for (int n = 0; n < group; n += V::grad_rows) {
              const int rows = static_cast<int>(min(V::grad_rows, group - n));
              WordGrad<V, V::grad_rows>::run(rows, spans + s + n, g + n, types, u + h, x + n * S + h, da + h, db + h);
            }
          }
        }
        add_scaled<V>(du, types, S, column, columns, in.hidden, 1.0f,
                      grads.u + block->first_type * in.hidden + t0 * in.hidden);
      }
      add_scaled<V>(da, words, S, column, columns, in.hidden, scale, grads.a + block->first * in.hidden);
      add_scaled<V>(db, ends, S, column, columns, in.hidden, scale, grads.b + (block->first + k0) * in.hidden);
    }
  }
}

}  // namespace
