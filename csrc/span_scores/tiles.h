// The tiled span kernels, written once for every vector class V (csrc/simd/).
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge them. For the same reason nothing here instantiates code of the standard library.
//
// Forward: for a block of words, columns of a, b and u are copied kScoreColumns at a time into contiguous, zero-padded
// scratch (rows of H floats lie at multiples of 4 KB apart and would share cache sets). A tile of R spans x T types
// keeps R * T accumulators in registers, lanes over columns: R sums relu(a_i + b_j), T loads of u, R * T FMAs a step.
// Backward: one task owns kSliceColumns columns, and goes through all words in order: no two tasks write one address.
#pragma once

#include "dropout.h"
#include "glimodern/span.h"

namespace {

using glimodern::kBlockWords;
using glimodern::kSliceColumns;
using glimodern::SpanGrads;
using glimodern::SpanInputs;
using glimodern::WordBlock;

constexpr int64_t kScoreColumns = 512;
constexpr int64_t kWidthChunk = 16;                      // widths k at a time, so that b's rows fit the scratch
constexpr int64_t kEndRows = kBlockWords + kWidthChunk;  // rows of b that a block and a chunk of widths touch
constexpr int64_t kTypeChunk = 32;                       // types whose u rows lie in scratch together
constexpr int64_t kDropSpans = 6;                        // spans whose dropped-out x lie in scratch together
constexpr int64_t kGradSpans = 24;
constexpr int64_t kBlockSpans = kBlockWords * kWidthChunk;

template <class V>
size_t scratch_floats() {
  const int64_t score = (kBlockWords + kEndRows + kTypeChunk + kDropSpans) * kScoreColumns;
  const int64_t grad = (2 * kBlockWords + 2 * kEndRows + 2 * kTypeChunk + kGradSpans) * kSliceColumns;
  return static_cast<size_t>(score > grad ? score : grad);
}

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

// Columns [column, column + columns) of `rows` rows -> [rows, padded], zero-padded; padded is a multiple of V::width.
template <class V>
void pack(const float* from, int64_t rows, int64_t stride, int64_t column, int64_t columns, int64_t padded, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = from + r * stride + column;
    float* q = to + r * padded;
    int64_t h = 0;
    for (; h + V::width <= columns; h += V::width) V::store(q + h, V::loadu(p + h));
    for (; h < columns; ++h) q[h] = p[h];
    for (; h < padded; ++h) q[h] = 0.0f;
  }
}

// [rows, padded] scratch times scale, added onto columns of `rows` rows.
template <class V>
void add_back(const float* from, int64_t rows, int64_t padded, int64_t column, int64_t columns, int64_t stride,
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

template <class V>
void clear(float* p, int64_t n) {
  for (int64_t h = 0; h < n; h += V::width) V::store(p + h, V::zero());
}

// Asks for the next columns of a's and b's rows, a little with every tile, so that they are near when they are packed.
struct Prefetch {
  const float* row[2];  // the next row of a, of b
  int64_t rows[2];      // how many are left
  int64_t stride, columns;
  int64_t column = 0;
  int64_t share = 0;  // lines a tile

  static constexpr int line = 16;  // floats

  void step() {
    for (int64_t n = 0; n < share; ++n) {
      const int part = rows[0] > 0 ? 0 : 1;
      if (rows[part] == 0) return;
      __builtin_prefetch(row[part] + column, 0, 2);
      column += line;
      if (column >= columns) {
        column = 0;
        row[part] += stride;
        --rows[part];
      }
    }
  }
};

struct Span {
  int start, end;  // rows of the packed a and b
  int64_t value;   // where the span's row of values begins
};

// The spans of a block with widths [k0, k0 + widths), in order of (word, width).
inline int list_spans(const SpanInputs& in, const WordBlock& block, int64_t k0, int64_t widths, Span* spans) {
  int count = 0;
  for (int64_t i = block.first; i < block.last; ++i) {
    const int64_t end = smaller(block.widths(i, in.max_width), k0 + widths);
    for (int64_t k = k0; k < end; ++k) {
      const int64_t at = i - block.first;
      spans[count++] = {static_cast<int>(at), static_cast<int>(at + k - k0),
                        block.offset + at * block.stride + k * block.types};
    }
  }
  return count;
}

// x <- drop(relu(a + b)) of `columns` (a multiple of V::width) columns, the first of which is in.hidden's `column`.
template <class V>
void span_row(const SpanInputs& in, const float* a, const float* b, uint64_t row, int64_t column, int64_t columns,
              float* x) {
  if (!in.dropout) {
    for (int64_t h = 0; h < columns; h += V::width)
      V::store(x + h, V::max(V::zero(), V::add(V::load(a + h), V::load(b + h))));
    return;
  }
  using I = typename V::I;
  const uint32_t first = dropout_key(row, in.seed) + static_cast<uint32_t>(column) * kGolden;
  I counter = V::add(V::set1(first), V::mul(V::lanes(), V::set1(kGolden)));
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden);
  const I bound = V::set1(in.drop_below);
  const auto scale = V::set1(in.keep_scale);
  for (int64_t h = 0; h < columns; h += V::width) {
    I hash = V::mul(V::template xor_shift<16>(counter), V::set1(0x7FEB352Du));
    hash = V::mul(V::template xor_shift<15>(hash), V::set1(0x846CA68Bu));
    hash = V::template xor_shift<16>(hash);
    const auto kept = V::mul(scale, V::max(V::zero(), V::add(V::load(a + h), V::load(b + h))));
    V::store(x + h, V::where_at_least(hash, bound, kept));
    counter = V::add(counter, step);
  }
}

template <class V, bool kPacked>
inline typename V::F span_vector(const float* start, const float* end, typename V::F zero) {
  return kPacked ? V::load(start) : V::max(zero, V::add(V::load(start), V::load(end)));
}

// sums[r * T + t] = sum over columns of x_r * u_t. Packed: x_r lies in start[r] already; else x_r = relu(start[r] +
// end[r]).
template <class V, int T, bool kPacked>
void score_tile(const float* const* start, const float* const* end, const float* u, int64_t stride, int64_t columns,
                float* sums) {
  constexpr int R = V::tile_rows[T];
  using F = typename V::F;
  F sum[R * T];
#pragma GCC unroll 64
  for (int n = 0; n < R * T; ++n) sum[n] = V::zero();
  for (int64_t h = 0; h < columns; h += V::width) {
    const F zero = V::local_zero();
    if (R <= T) {  // the shorter side of the tile stays in registers
      F x[R];
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r) x[r] = span_vector<V, kPacked>(start[r] + h, end[r] + h, zero);
#pragma GCC unroll 64
      for (int t = 0; t < T; ++t) {
        const F w = V::load(u + t * stride + h);
#pragma GCC unroll 64
        for (int r = 0; r < R; ++r) sum[r * T + t] = V::fma(x[r], w, sum[r * T + t]);
      }
    } else {
      F w[T];
#pragma GCC unroll 64
      for (int t = 0; t < T; ++t) w[t] = V::load(u + t * stride + h);
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r) {
        const F x = span_vector<V, kPacked>(start[r] + h, end[r] + h, zero);
#pragma GCC unroll 64
        for (int t = 0; t < T; ++t) sum[r * T + t] = V::fma(x, w[t], sum[r * T + t]);
      }
    }
  }
#pragma GCC unroll 64
  for (int n = 0; n < R * T; n += 4) {
    const F zero = V::zero();
    const F x1 = n + 1 < R * T ? sum[n + 1] : zero, x2 = n + 2 < R * T ? sum[n + 2] : zero,
            x3 = n + 3 < R * T ? sum[n + 3] : zero;
    _mm_storeu_ps(sums + n, V::sum4(sum[n], x1, x2, x3));
  }
}

// What one pass over the spans works on: rows of `columns` columns in scratch, values += sums.
struct ScorePass {
  const Span* spans;
  int count;
  const float* a;  // [words], [words + widths - 1]: x = relu(a + b) is computed on the way ...
  const float* b;
  const float* x;  // ... or [count]: it has been
  const float* u;  // [types]
  int64_t types, columns;
  float* values;
};

template <class V, int T, bool kPacked>
void score_types(const ScorePass& pass, int type, Prefetch& ahead) {
  constexpr int R = V::tile_rows[T];
  float sums[R * T + 3];
  const float* start[R];
  const float* end[R];
  for (int s = 0; s < pass.count; s += R) {
    for (int r = 0; r < R; ++r) {
      const int at = s + r < pass.count ? s + r : pass.count - 1;  // rows beyond the list repeat its last, unwritten
      start[r] = kPacked ? pass.x + at * pass.columns : pass.a + pass.spans[at].start * pass.columns;
      end[r] = kPacked ? nullptr : pass.b + pass.spans[at].end * pass.columns;
    }
    ahead.step();
    score_tile<V, T, kPacked>(start, end, pass.u + type * pass.columns, pass.columns, pass.columns, sums);
    for (int r = 0; r < R && s + r < pass.count; ++r) {
      float* out = pass.values + pass.spans[s + r].value + type;
      for (int t = 0; t < T; ++t) out[t] += sums[r * T + t];
    }
  }
}

template <class V, int T, bool kPacked>
struct ScoreTypes {  // run(): score_types for a T known at run time, 1 <= T <= the template's
  static void run(int types, const ScorePass& pass, int type, Prefetch& ahead) {
    if (types == T) return score_types<V, T, kPacked>(pass, type, ahead);
    ScoreTypes<V, T - 1, kPacked>::run(types, pass, type, ahead);
  }
};
template <class V, bool kPacked>
struct ScoreTypes<V, 0, kPacked> {
  static void run(int, const ScorePass&, int, Prefetch&) {}
};

inline int parts_of(int64_t total, int largest) { return static_cast<int>((total + largest - 1) / largest); }

// All types of a pass, in tiles of nearly equal numbers of types.
template <class V, bool kPacked>
void score_pass(const ScorePass& pass, Prefetch& ahead) {
  const int tiles = parts_of(pass.types, V::max_tile_types);
  int type = 0;
  for (int n = 0; n < tiles; ++n) {
    const int width = parts_of(pass.types - type, tiles - n);
    ScoreTypes<V, V::max_tile_types, kPacked>::run(width, pass, type, ahead);
    type += width;
  }
}

template <class V>
void score_block(const SpanInputs& in, const WordBlock& block, float* values, float* scratch) {
  const int64_t words = block.last - block.first;
  constexpr int64_t step = kScoreColumns;
  float* a = scratch;
  float* b = a + kBlockWords * step;
  float* u = b + kEndRows * step;
  float* x = u + kTypeChunk * step;
  Span spans[kBlockSpans];
  for (int64_t k0 = 0; k0 < block.widths(block.first, in.max_width); k0 += kWidthChunk) {
    const int64_t widths = smaller(kWidthChunk, in.max_width - k0);
    const int count = list_spans(in, block, k0, widths, spans);
    const int64_t ends = smaller(words + widths - 1, block.text_end - block.first - k0);
    const float* first_a = in.a + block.first * in.hidden;
    const float* first_b = in.b + (block.first + k0) * in.hidden;
    for (int s = 0; s < count; ++s) {
      for (int64_t t = 0; t < block.types; ++t) values[spans[s].value + t] = in.c[block.first_type + t];
    }
    for (int64_t h = 0; h < in.hidden; h += step) {
      const int64_t columns = smaller(step, in.hidden - h);
      const int64_t padded = (columns + V::width - 1) / V::width * V::width;
      pack<V>(first_a, words, in.hidden, h, columns, padded, a);
      pack<V>(first_b, ends, in.hidden, h, columns, padded, b);
      Prefetch ahead{
          {first_a + h + step, first_b + h + step}, {words, ends}, in.hidden, smaller(step, in.hidden - h - step)};
      if (ahead.columns > 0) {
        const int64_t lines = (words + ends) * parts_of(ahead.columns, Prefetch::line);
        ahead.share =
            lines / ((count / V::tile_rows[V::max_tile_types] + 1) * parts_of(block.types, V::max_tile_types)) + 1;
      }
      for (int64_t t = 0; t < block.types; t += kTypeChunk) {
        const int64_t types = smaller(kTypeChunk, block.types - t);
        pack<V>(in.u + (block.first_type + t) * in.hidden, types, in.hidden, h, columns, padded, u);
        ScorePass pass{spans, count, a, b, x, u, types, padded, values + t};
        if (!in.dropout) {
          score_pass<V, false>(pass, ahead);
          continue;
        }
        for (int s = 0; s < count; s += kDropSpans) {
          pass.spans = spans + s;
          pass.count = static_cast<int>(smaller(kDropSpans, count - s));
          for (int n = 0; n < pass.count; ++n) {
            const Span& span = pass.spans[n];
            const int64_t row = (block.first + span.start) * in.max_width + k0 + span.end - span.start;
            span_row<V>(in, a + span.start * padded, b + span.end * padded, static_cast<uint64_t>(row), h, padded,
                        x + n * padded);
          }
          score_pass<V, true>(pass, ahead);
        }
      }
    }
  }
}

// du[t] += sum over spans of g[s][t] * x[s], for T types and V::grad_vectors vectors of columns.
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
struct TypeGrad {  // run(): type_grad_tile for a T known at run time
  static void run(int types, const float* const* g, int type, const float* x, int count, float* du) {
    if (types == T) return type_grad_tile<V, T>(g, type, x, count, du);
    TypeGrad<V, T - 1>::run(types, g, type, x, count, du);
  }
};
template <class V>
struct TypeGrad<V, 0> {
  static void run(int, const float* const*, int, const float*, int, float*) {}
};

// da[start], db[end] += (sum over types of g[s][t] * u[t]) where x[s] > 0 (a mask's scale comes last), for R spans and
// V::grad_vectors vectors.
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
    F word = V::zero();
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
struct WordGrad {  // run(): word_grad_tile for an R known at run time
  static void run(int rows, const Span* spans, const float* const* g, int64_t types, const float* u, const float* x,
                  float* da, float* db) {
    if (rows == R) return word_grad_tile<V, R>(spans, g, types, u, x, da, db);
    WordGrad<V, R - 1>::run(rows, spans, g, types, u, x, da, db);
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
  const int64_t columns = smaller(S, in.hidden - column);
  const float scale = in.dropout ? in.keep_scale : 1.0f;
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
      const int64_t widths = smaller(kWidthChunk, in.max_width - k0);
      const int listed = list_spans(in, *block, k0, widths, spans);
      const int64_t ends = smaller(words + widths - 1, block->text_end - block->first - k0);
      pack<V>(in.a + block->first * in.hidden, words, in.hidden, column, columns, S, a);
      pack<V>(in.b + (block->first + k0) * in.hidden, ends, in.hidden, column, columns, S, b);
      clear<V>(da, words * S);
      clear<V>(db, ends * S);
      for (int64_t t0 = 0; t0 < block->types; t0 += kTypeChunk) {
        const int64_t types = smaller(kTypeChunk, block->types - t0);
        pack<V>(in.u + (block->first_type + t0) * in.hidden, types, in.hidden, column, columns, S, u);
        clear<V>(du, types * S);
        for (int s = 0; s < listed; s += kGradSpans) {
          const int group = static_cast<int>(smaller(kGradSpans, listed - s));
          for (int n = 0; n < group; ++n) {
            const Span& span = spans[s + n];
            const uint64_t row =
                static_cast<uint64_t>((block->first + span.start) * in.max_width + k0 + span.end - span.start);
            span_row<V>(in, a + span.start * S, b + span.end * S, row, column, S, x + n * S);
            g[n] = values + span.value + t0;
          }
          for (int64_t h = 0; h < S; h += step) {
            const int tiles = parts_of(types, V::grad_rows);
            int type = 0;
            for (int n = 0; n < tiles; ++n) {
              const int width = parts_of(types - type, tiles - n);
              TypeGrad<V, V::grad_rows>::run(width, g, type, x + h, group, du + h);
              type += width;
            }
            for (int n = 0; n < group; n += V::grad_rows) {
              const int rows = static_cast<int>(smaller(V::grad_rows, group - n));
              WordGrad<V, V::grad_rows>::run(rows, spans + s + n, g + n, types, u + h, x + n * S + h, da + h, db + h);
            }
          }
        }
        add_back<V>(du, types, S, column, columns, in.hidden, 1.0f,
                    grads.u + block->first_type * in.hidden + t0 * in.hidden);
      }
      add_back<V>(da, words, S, column, columns, in.hidden, scale, grads.a + block->first * in.hidden);
      add_back<V>(db, ends, S, column, columns, in.hidden, scale, grads.b + (block->first + k0) * in.hidden);
    }
  }
}

}  // namespace
