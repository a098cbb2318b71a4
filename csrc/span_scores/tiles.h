// The tiled span kernels, written once for every vector class V (csrc/simd/).
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge them. For the same reason nothing here instantiates code of the standard library.
//
// Forward: for a block of words, columns of a, b and u are copied kScoreColumns at a time into contiguous, zero-padded
// fp32 scratch (rows of H floats lie at multiples of 4 KB apart and would share cache sets). The unit of work is a
// panel of R spans: its x = relu(a_i + b_j) are computed once, with the first tile of types, and kept in L1 for the
// others. A tile of R spans x T types keeps R * T accumulators in registers, lanes over columns. Panels and tiles of u
// are interleaved, [columns / V::width][R or T][V::width], so that a tile reads two streams whatever R and T are: with
// one stream a row, L1 delivered 60 % of the FMA ceiling on Zen 3, with two it delivers 95 %. Backward: one task owns
// kSliceColumns columns, and goes through all words in order: no two tasks write one address.
#pragma once

#include "dropout.h"
#include "glimodern/span.h"

namespace {

using glimodern::Dtype;
using glimodern::kBlockWords;
using glimodern::kSliceColumns;
using glimodern::SpanGrads;
using glimodern::SpanInputs;
using glimodern::WordBlock;

constexpr int64_t kScoreColumns = 384;
constexpr int64_t kWidthChunk = 16;                      // widths k at a time, so that b's rows fit the scratch
constexpr int64_t kEndRows = kBlockWords + kWidthChunk;  // rows of b that a block and a chunk of widths touch
constexpr int64_t kTypeChunk = 32;                       // types whose u rows lie in scratch together
constexpr int64_t kPanelRows = 8;                        // spans of a panel at most
constexpr int64_t kGradSpans = 24;
constexpr int64_t kBlockSpans = kBlockWords * kWidthChunk;

template <class V>
size_t scratch_floats() {
  const int64_t sums = 2 * kBlockSpans * kTypeChunk;  // twice: tiles are padded to whole groups of four
  const int64_t score = (kBlockWords + kEndRows + kTypeChunk + kPanelRows) * kScoreColumns + sums;
  const int64_t grad = (2 * kBlockWords + 2 * kEndRows + 2 * kTypeChunk + kGradSpans) * kSliceColumns;
  return static_cast<size_t>(score > grad ? score : grad);
}

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

inline int64_t within(int64_t rows, int64_t first, int64_t wanted) {  // of the wanted rows
  return first >= rows ? 0 : smaller(wanted, rows - first);
}

inline int parts_of(int64_t total, int largest) { return static_cast<int>((total + largest - 1) / largest); }

// A matrix of in.dtype, [rows, stride].
struct Matrix {
  const void* at;
  Dtype dtype;
  int64_t stride;

  const char* address(int64_t row, int64_t column) const {
    return static_cast<const char*>(at) + (row * stride + column) * (dtype == Dtype::bf16 ? 2 : 4);
  }
};

// Columns [column, column + columns) of `rows` rows as fp32 vectors: vector v of row r at r * row_step + v *
// vector_step, zero-padded to `vectors` vectors.
template <class V>
void pack(const Matrix& from, int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t vectors, float* to,
          int64_t row_step, int64_t vector_step) {
  const int64_t whole = columns / V::width;
  for (int64_t r = 0; r < rows; ++r, to += row_step) {
    const char* line = from.address(row + r, column);
    float* q = to;
    if (from.dtype == Dtype::bf16) {
      const Bf16* p = reinterpret_cast<const Bf16*>(line);
      for (int64_t v = 0; v < whole; ++v, q += vector_step) V::store(q, V::loadu(p + v * V::width));
      for (int64_t v = whole; v < vectors; ++v, q += vector_step) {
        alignas(64) Bf16 rest[V::width] = {};
        for (int64_t h = v * V::width; h < columns; ++h) rest[h - v * V::width] = p[h];
        V::store(q, V::loadu(rest));
      }
    } else {
      const float* p = reinterpret_cast<const float*>(line);
      for (int64_t v = 0; v < whole; ++v, q += vector_step) V::store(q, V::loadu(p + v * V::width));
      for (int64_t v = whole; v < vectors; ++v, q += vector_step) {
        V::store(q, V::zero());
        for (int64_t h = v * V::width; h < columns; ++h) q[h - v * V::width] = p[h];
      }
    }
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

// Asks for the columns that are packed next, a little with every tile, so that they are near by then.
struct Prefetch {
  struct Part {
    const char* row;
    int64_t rows, stride;  // in bytes
  };
  Part parts[3];  // of a, b, u
  int64_t bytes;  // of each row
  int64_t share;  // lines a tile
  int64_t part = 0, at = 0;

  void step() {
    for (int64_t n = 0; n < share && part < 3; ++n) {
      Part& now = parts[part];
      if (now.rows == 0) {
        ++part;
        continue;
      }
      __builtin_prefetch(now.row + at, 0, 2);
      at += 64;
      if (at >= bytes) {
        at = 0;
        now.row += now.stride;
        --now.rows;
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

// x <- drop(relu(a + b)) of `columns` (a multiple of V::width) columns, the first of which is in.hidden's `column`;
// vector v goes to x + v * vector_step.
template <class V>
void span_row(const SpanInputs& in, const float* a, const float* b, uint64_t row, int64_t column, int64_t columns,
              float* x, int64_t vector_step) {
  if (!in.dropout) {
    for (int64_t h = 0; h < columns; h += V::width, x += vector_step)
      V::store(x, V::max(V::zero(), V::add(V::load(a + h), V::load(b + h))));
    return;
  }
  using I = typename V::I;
  I counter = column_counters<V>(dropout_key(row, in.seed), column);
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden);
  const I bound = V::set1(in.drop_below);
  const auto scale = V::set1(static_cast<float>(in.keep_scale));
  for (int64_t h = 0; h < columns; h += V::width, x += vector_step) {
    const auto kept = V::mul(scale, V::max(V::zero(), V::add(V::load(a + h), V::load(b + h))));
    V::store(x, V::where_at_least(mix32_lanes<V>(counter), bound, kept));
    counter = V::add(counter, step);
  }
}

// Where a tile's x come from: a + b on the way (the only tile), a + b and into the panel (the first of several), or the
// panel.
enum class Source { sums, sums_to_panel, panel };

template <class V, int R, Source kFrom>
inline void span_vectors(const float* const (&a)[R], const float* const (&b)[R], int64_t h, float* panel,
                         typename V::F* x) {
  if (kFrom == Source::panel) {
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) x[r] = V::load(panel + r * V::width);
    return;
  }
  const auto zero = V::local_zero();
#pragma GCC unroll 64
  for (int r = 0; r < R; ++r) {
    x[r] = V::max(zero, V::add(V::load(a[r] + h), V::load(b[r] + h)));
    if (kFrom == Source::sums_to_panel) V::store(panel + r * V::width, x[r]);
  }
}

// sums[r * T + t] += sum over columns of x_r * u_t; u [columns / V::width][T][V::width].
template <class V, int R, int T, Source kFrom>
void score_tile(const float* const* starts, const float* const* ends, float* panel, const float* u, int64_t columns,
                float* sums) {
  using F = typename V::F;
  const float* a[R];
  const float* b[R];
#pragma GCC unroll 64
  for (int r = 0; r < R; ++r) a[r] = starts[r], b[r] = ends[r];
  F sum[R * T];
#pragma GCC unroll 64
  for (int n = 0; n < R * T; ++n) sum[n] = V::zero();
  for (int64_t h = 0; h < columns; h += V::width) {
    if (R <= T) {  // the shorter side of the tile stays in registers
      F x[R];
      span_vectors<V, R, kFrom>(a, b, h, panel, x);
#pragma GCC unroll 64
      for (int t = 0; t < T; ++t) {
        const F w = V::load(u + t * V::width);
#pragma GCC unroll 64
        for (int r = 0; r < R; ++r) sum[r * T + t] = V::fma(x[r], w, sum[r * T + t]);
      }
    } else {
      F w[T];
#pragma GCC unroll 64
      for (int t = 0; t < T; ++t) w[t] = V::load(u + t * V::width);
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r) {
        F x[1];
        const float* const one_a[1] = {a[r]};
        const float* const one_b[1] = {b[r]};
        span_vectors<V, 1, kFrom>(one_a, one_b, h, panel + r * V::width, x);
#pragma GCC unroll 64
        for (int t = 0; t < T; ++t) sum[r * T + t] = V::fma(x[0], w[t], sum[r * T + t]);
      }
    }
    panel += R * V::width;
    u += T * V::width;
  }
#pragma GCC unroll 64
  for (int n = 0; n < R * T; n += 4) {
    const F zero = V::zero();
    const F x1 = n + 1 < R * T ? sum[n + 1] : zero, x2 = n + 2 < R * T ? sum[n + 2] : zero,
            x3 = n + 3 < R * T ? sum[n + 3] : zero;
    _mm_store_ps(sums + n, _mm_add_ps(_mm_load_ps(sums + n), V::sum4(sum[n], x1, x2, x3)));
  }
}

// What one pass over the spans works on: `columns` columns of all, in scratch.
struct ScorePass {
  const SpanInputs& in;
  const WordBlock& block;
  const Span* spans;
  int count;
  int64_t k0, column, columns;
  const float* a;  // [words, columns], [words + widths - 1, columns]
  const float* b;
  const float* u;  // tile after tile
  float* panel;
  int types, tiles;
  const int* tile_at;  // [tiles + 1], the first type of each
  float* sums;         // panel after panel, tile after tile, R * T in whole groups of four
};

inline int tile_sums(int rows, int types) { return (rows * types + 3) / 4 * 4; }

template <class V, int R, int T>
struct ScoreTile {  // run(): score_tile for a number of types known at run time
  static void run(int types, Source from, const float* const* starts, const float* const* ends, float* panel,
                  const float* u, int64_t columns, float* sums) {
    if (types != T) return ScoreTile<V, R, T - 1>::run(types, from, starts, ends, panel, u, columns, sums);
    if (from == Source::panel) return score_tile<V, R, T, Source::panel>(starts, ends, panel, u, columns, sums);
    if (from == Source::sums) return score_tile<V, R, T, Source::sums>(starts, ends, panel, u, columns, sums);
    score_tile<V, R, T, Source::sums_to_panel>(starts, ends, panel, u, columns, sums);
  }
};
template <class V, int R>
struct ScoreTile<V, R, 0> {
  static void run(int, Source, const float* const*, const float* const*, float*, const float*, int64_t, float*) {}
};

// All panels of R spans, all tiles of at most T types. The last panel repeats its last span; nobody reads those sums.
template <class V, int R, int T>
void score_panels(const ScorePass& pass, Prefetch& ahead) {
  float* sums = pass.sums;
  for (int first = 0; first < pass.count; first += R) {
    const float* a[R];
    const float* b[R];
    for (int r = 0; r < R; ++r) {
      const Span& span = pass.spans[first + r < pass.count ? first + r : pass.count - 1];
      a[r] = pass.a + span.start * pass.columns;
      b[r] = pass.b + span.end * pass.columns;
      if (!pass.in.dropout) continue;
      const int64_t row = (pass.block.first + span.start) * pass.in.max_width + pass.k0 + span.end - span.start;
      span_row<V>(pass.in, a[r], b[r], static_cast<uint64_t>(row), pass.column, pass.columns, pass.panel + r * V::width,
                  R * V::width);
    }
    Source from = pass.in.dropout ? Source::panel : pass.tiles == 1 ? Source::sums : Source::sums_to_panel;
    for (int n = 0; n < pass.tiles; ++n) {
      const int types = pass.tile_at[n + 1] - pass.tile_at[n];
      ScoreTile<V, R, T>::run(types, from, a, b, pass.panel, pass.u + pass.tile_at[n] * pass.columns, pass.columns,
                              sums);
      ahead.step();
      sums += tile_sums(R, types);
      from = Source::panel;
    }
  }
}

template <class V, int T>
struct ScorePanels {  // run(): score_panels with the panel that suits the number of types
  static void run(const ScorePass& pass, Prefetch& ahead) {
    if (pass.types == T) return score_panels<V, V::tile_rows[T], T>(pass, ahead);
    ScorePanels<V, T - 1>::run(pass, ahead);
  }
};
template <class V>
struct ScorePanels<V, 0> {
  static void run(const ScorePass& pass, Prefetch& ahead) {
    score_panels<V, V::tile_rows[V::max_tile_types], V::max_tile_types>(pass, ahead);
  }
};

template <class V>
void score_block(const SpanInputs& in, const WordBlock& block, float* values, float* scratch) {
  const int64_t words = block.last - block.first;
  constexpr int64_t step = kScoreColumns;
  static_assert(step % V::width == 0, "columns are whole vectors");
  const Matrix a{in.a, in.dtype, in.hidden}, b{in.b, in.dtype, in.hidden}, u{in.u, in.dtype, in.hidden};
  float* packed_a = scratch;
  float* packed_b = packed_a + kBlockWords * step;
  float* packed_u = packed_b + kEndRows * step;
  float* panel = packed_u + kTypeChunk * step;
  float* sums = panel + kPanelRows * step;
  Span spans[kBlockSpans];
  for (int64_t k0 = 0; k0 < block.widths(block.first, in.max_width); k0 += kWidthChunk) {
    const int64_t widths = smaller(kWidthChunk, in.max_width - k0);
    const int count = list_spans(in, block, k0, widths, spans);
    const int64_t ends = smaller(words + widths - 1, block.text_end - block.first - k0);
    for (int64_t t0 = 0; t0 < block.types; t0 += kTypeChunk) {
      const int types = static_cast<int>(smaller(kTypeChunk, block.types - t0));
      const int tiles = parts_of(types, V::max_tile_types);
      const int rows = V::tile_rows[tiles == 1 ? types : V::max_tile_types];
      int tile_at[kTypeChunk + 1] = {0};  // parts as equal as can be
      for (int n = 0; n < tiles; ++n) tile_at[n + 1] = tile_at[n] + parts_of(types - tile_at[n], tiles - n);
      clear<V>(sums, parts_of(count, rows) * (rows * types + 3 * tiles));
      for (int64_t h = 0; h < in.hidden; h += step) {
        const int64_t columns = smaller(step, in.hidden - h);
        const int64_t vectors = (columns + V::width - 1) / V::width, padded = vectors * V::width;
        pack<V>(a, block.first, words, h, columns, vectors, packed_a, padded, V::width);
        pack<V>(b, block.first + k0, ends, h, columns, vectors, packed_b, padded, V::width);
        for (int n = 0; n < tiles; ++n) {
          const int part = tile_at[n + 1] - tile_at[n];
          pack<V>(u, block.first_type + t0 + tile_at[n], part, h, columns, vectors, packed_u + tile_at[n] * padded,
                  V::width, part * V::width);
        }
        // Next come more columns of the same rows, or the first columns of what follows them in the batch.
        const bool more = h + step < in.hidden;
        const int64_t next = more ? h + step : 0, words_on = more ? 0 : words, types_on = more ? 0 : types;
        const int64_t bytes = a.address(0, smaller(step, in.hidden - next)) - a.address(0, 0);
        const int64_t line = a.address(1, 0) - a.address(0, 0);
        const int64_t first_a = block.first + words_on, first_b = block.first + k0 + words_on,
                      first_u = block.first_type + t0 + types_on;
        const int64_t left_a = within(in.words, first_a, words), left_b = within(in.words, first_b, ends),
                      left_u = within(in.types, first_u, types);
        Prefetch ahead{{{a.address(first_a, next), left_a, line},
                        {b.address(first_b, next), left_b, line},
                        {u.address(first_u, next), left_u, line}},
                       bytes,
                       (left_a + left_b + left_u) * parts_of(bytes, 64) / (parts_of(count, rows) * tiles) + 1};
        ScorePanels<V, V::max_tile_types>::run(
            {in, block, spans, count, k0, h, padded, packed_a, packed_b, packed_u, panel, types, tiles, tile_at, sums},
            ahead);
      }
      const float* bias = static_cast<const float*>(in.c) + block.first_type + t0;
      const float* sum = sums;
      for (int first = 0; first < count; first += rows) {
        for (int n = 0; n < tiles; ++n) {
          const int part = tile_at[n + 1] - tile_at[n];
          for (int r = 0; r < rows && first + r < count; ++r) {
            float* value = values + spans[first + r].value + t0;
            for (int t = 0; t < part; ++t) value[tile_at[n] + t] = bias[tile_at[n] + t] + sum[r * part + t];
          }
          sum += tile_sums(rows, part);
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
  const float scale = in.dropout ? static_cast<float>(in.keep_scale) : 1.0f;
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
      const int64_t widths = smaller(kWidthChunk, in.max_width - k0);
      const int listed = list_spans(in, *block, k0, widths, spans);
      const int64_t ends = smaller(words + widths - 1, block->text_end - block->first - k0);
      pack<V>(all_a, block->first, words, column, columns, S / V::width, a, S, V::width);
      pack<V>(all_b, block->first + k0, ends, column, columns, S / V::width, b, S, V::width);
      clear<V>(da, words * S);
      clear<V>(db, ends * S);
      for (int64_t t0 = 0; t0 < block->types; t0 += kTypeChunk) {
        const int64_t types = smaller(kTypeChunk, block->types - t0);
        pack<V>(all_u, block->first_type + t0, types, column, columns, S / V::width, u, S, V::width);
        clear<V>(du, types * S);
        for (int s = 0; s < listed; s += kGradSpans) {
          const int group = static_cast<int>(smaller(kGradSpans, listed - s));
          for (int n = 0; n < group; ++n) {
            const Span& span = spans[s + n];
            const uint64_t row =
                static_cast<uint64_t>((block->first + span.start) * in.max_width + k0 + span.end - span.start);
            span_row<V>(in, a + span.start * S, b + span.end * S, row, column, S, x + n * S, V::width);
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
