// The tiled span kernels, written once for every vector class V (csrc/simd/).
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge them. For the same reason nothing here instantiates code of the standard library.
//
// Forward: for a block of words, columns of b and u (and of a, unless it can be read in place) are copied kScoreColumns
// at a time into contiguous, zero-padded fp32 scratch (rows of H floats lie at multiples of 4 KB apart and would share
// cache sets). A tile of R spans x T types keeps R * T accumulators in registers, lanes over columns, and computes its
// x = relu(a_i + b_j) on the way, whatever the number of tiles: on Zen 3 additions and maxima have ports of their own,
// and x stored with the first tile for the others cost more than it saved. Under dropout, whose hash is dear, x of
// kGroupSpans spans is computed first. u is interleaved, [columns / V::width][T][V::width], one stream whatever T is.
// All spans go through one tile of types before the next, so that it and the b of neighbouring spans stay in the first
// cache. Backward: one task owns kSliceColumns columns, and goes through all words in order: no two tasks write one
// address.
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
constexpr int64_t kGroupSpans = 24;                      // a multiple of every V::tile_rows
constexpr int64_t kGradSpans = 24;
constexpr int64_t kBlockSpans = kBlockWords * kWidthChunk;

template <class V>
size_t scratch_floats() {
  const int64_t sums = 2 * kBlockSpans * kTypeChunk;  // twice: tiles are padded to whole groups of four
  const int64_t score = (kBlockWords + kEndRows + kTypeChunk + kGroupSpans) * kScoreColumns + sums;
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

// The row of the dropout mask.
inline uint64_t span_number(const SpanInputs& in, const WordBlock& block, int64_t k0, const Span& span) {
  return static_cast<uint64_t>((block.first + span.start) * in.max_width + k0 + span.end - span.start);
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
  I counter = column_counters<V>(dropout_key(row, in.seed), column);
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden);
  const I bound = V::set1(in.drop_below);
  const auto scale = V::set1(static_cast<float>(in.keep_scale));
  for (int64_t h = 0; h < columns; h += V::width) {
    const auto kept = V::mul(scale, V::max(V::zero(), V::add(V::load(a + h), V::load(b + h))));
    V::store(x + h, V::where_at_least(mix32_lanes<V>(counter), bound, kept));
    counter = V::add(counter, step);
  }
}

// sums[r * T + t] += sum over columns of x_r * u_t, x_r = relu(a_r + b_r), or a_r as it is (kReady); u [columns /
// V::width][T][V::width].
template <class V, int R, int T, bool kReady>
void score_tile(const float* const (&a)[R], const float* const (&b)[R], const float* u, int64_t columns, float* sums) {
  using F = typename V::F;
  const auto x_of = [&](int r, int64_t h, F zero) {
    return kReady ? V::load(a[r] + h) : V::max(zero, V::add(V::loadu(a[r] + h), V::load(b[r] + h)));
  };
  F sum[R * T];
#pragma GCC unroll 64
  for (int n = 0; n < R * T; ++n) sum[n] = V::zero();
#pragma GCC unroll 2
  for (int64_t h = 0; h < columns; h += V::width, u += T * V::width) {
    const F zero = V::local_zero();
    if (R <= T) {  // the shorter side of the tile stays in registers
      F x[R];
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r) x[r] = x_of(r, h, zero);
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
        const F x = x_of(r, h, zero);
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
    _mm_store_ps(sums + n, _mm_add_ps(_mm_load_ps(sums + n), V::sum4(sum[n], x1, x2, x3)));
  }
}

// What one pass over the spans works on: `columns` columns of all.
struct ScorePass {
  const Span* spans;
  int64_t columns;
  const float* a;  // rows a_stride apart, of the block's words
  int64_t a_stride;
  const float* b;  // [words + widths - 1, columns]
  const float* x;  // [kGroupSpans, columns]: of a group's spans, if not null
};

inline int tile_sums(int rows, int types) { return (rows * types + 3) / 4 * 4; }

// Spans [begin, end), R at a time, by a tile of T types. The last R repeat their last span; nobody reads those sums.
template <class V, int R, int T>
void score_spans(const ScorePass& pass, int begin, int end, const float* u, float* sums, Prefetch& ahead) {
  static_assert(kGroupSpans % R == 0, "groups are whole panels");
  for (int first = begin; first < end; first += R) {
    const float* a[R];
    const float* b[R];
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      const int s = first + r < end ? first + r : end - 1;
      a[r] = pass.x ? pass.x + (s - begin) * pass.columns : pass.a + pass.spans[s].start * pass.a_stride;
      b[r] = pass.b + pass.spans[s].end * pass.columns;
    }
    if (pass.x)
      score_tile<V, R, T, true>(a, b, u, pass.columns, sums);
    else
      score_tile<V, R, T, false>(a, b, u, pass.columns, sums);
    ahead.step();
    sums += tile_sums(R, T);
  }
}

template <class V, int T>
struct ScoreTypes {  // run(): score_spans by a tile of `types` types
  static void run(int types, const ScorePass& pass, int begin, int end, const float* u, float* sums, Prefetch& ahead) {
    if (types == T) return score_spans<V, V::tile_rows[T], T>(pass, begin, end, u, sums, ahead);
    ScoreTypes<V, T - 1>::run(types, pass, begin, end, u, sums, ahead);
  }
};
template <class V>
struct ScoreTypes<V, 0> {
  static void run(int, const ScorePass&, int, int, const float*, float*, Prefetch&) {}
};

// A tile of types: which, how many spans it takes at a time, and where its sums begin: R * T at a time, in whole groups
// of four.
struct TypeTile {
  int first, types, rows, panels;
  int64_t sums;

  int64_t sums_at(int span) const { return sums + static_cast<int64_t>(span / rows) * tile_sums(rows, types); }
};

// Cuts `types` into tiles as equal as can be; returns their number.
template <class V>
int cut_types(int types, int spans, TypeTile* tiles) {
  const int count = parts_of(types, V::max_tile_types);
  int first = 0;
  int64_t sums = 0;
  for (int n = 0; n < count; ++n) {
    const int part = parts_of(types - first, count - n), rows = V::tile_rows[part];
    tiles[n] = {first, part, rows, parts_of(spans, rows), sums};
    first += part;
    sums = tiles[n].sums_at(tiles[n].panels * rows);
  }
  return count;
}

template <class V>
void score_block(const SpanInputs& in, const WordBlock& block, float* values, float* scratch) {
  const int64_t words = block.last - block.first;
  constexpr int64_t step = kScoreColumns;
  static_assert(step % V::width == 0, "columns are whole vectors");
  const Matrix a{in.a, in.dtype, in.hidden}, b{in.b, in.dtype, in.hidden}, u{in.u, in.dtype, in.hidden};
  const bool in_place = in.dtype == Dtype::fp32 && in.hidden % V::width == 0 && !in.dropout;
  float* packed_a = scratch;
  float* packed_b = packed_a + kBlockWords * step;
  float* packed_u = packed_b + kEndRows * step;
  float* x = packed_u + kTypeChunk * step;
  float* sums = x + kGroupSpans * step;
  Span spans[kBlockSpans];
  TypeTile tiles[kTypeChunk];
  for (int64_t k0 = 0; k0 < block.widths(block.first, in.max_width); k0 += kWidthChunk) {
    const int64_t widths = smaller(kWidthChunk, in.max_width - k0);
    const int count = list_spans(in, block, k0, widths, spans);
    const int64_t ends = smaller(words + widths - 1, block.text_end - block.first - k0);
    for (int64_t t0 = 0; t0 < block.types; t0 += kTypeChunk) {
      const int types = static_cast<int>(smaller(kTypeChunk, block.types - t0));
      const int tile_count = cut_types<V>(types, count, tiles);
      int panels = 0;
      for (int n = 0; n < tile_count; ++n) panels += tiles[n].panels;
      const TypeTile& last = tiles[tile_count - 1];
      clear<V>(sums, last.sums_at(last.panels * last.rows));
      for (int64_t h = 0; h < in.hidden; h += step) {
        const int64_t columns = smaller(step, in.hidden - h);
        const int64_t vectors = (columns + V::width - 1) / V::width, padded = vectors * V::width;
        ScorePass pass{spans, padded, packed_a, padded, packed_b, in.dropout ? x : nullptr};
        if (in_place) {
          pass.a = reinterpret_cast<const float*>(a.address(block.first, h));
          pass.a_stride = in.hidden;
        } else {
          pack<V>(a, block.first, words, h, columns, vectors, packed_a, padded, V::width);
        }
        pack<V>(b, block.first + k0, ends, h, columns, vectors, packed_b, padded, V::width);
        for (int n = 0; n < tile_count; ++n) {
          pack<V>(u, block.first_type + t0 + tiles[n].first, tiles[n].types, h, columns, vectors,
                  packed_u + tiles[n].first * padded, V::width, tiles[n].types * V::width);
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
                       (left_a + left_b + left_u) * parts_of(bytes, 64) / panels + 1};
        for (int first = 0, group = in.dropout ? kGroupSpans : count; first < count; first += group) {
          const int end = static_cast<int>(smaller(first + group, count));
          for (int s = first; in.dropout && s < end; ++s) {
            span_row<V>(in, packed_a + spans[s].start * padded, packed_b + spans[s].end * padded,
                        span_number(in, block, k0, spans[s]), h, padded, x + (s - first) * padded);
          }
          for (int n = 0; n < tile_count; ++n) {
            ScoreTypes<V, V::max_tile_types>::run(tiles[n].types, pass, first, end, packed_u + tiles[n].first * padded,
                                                  sums + tiles[n].sums_at(first), ahead);
          }
        }
      }
      const float* bias = static_cast<const float*>(in.c) + block.first_type + t0;
      for (int n = 0; n < tile_count; ++n) {
        const TypeTile& tile = tiles[n];
        const float* sum = sums + tile.sums;
        for (int first = 0; first < count; first += tile.rows, sum += tile_sums(tile.rows, tile.types)) {
          for (int r = 0; r < tile.rows && first + r < count; ++r) {
            float* value = values + spans[first + r].value + t0 + tile.first;
            for (int t = 0; t < tile.types; ++t) value[t] = bias[tile.first + t] + sum[r * tile.types + t];
          }
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
            span_row<V>(in, a + span.start * S, b + span.end * S, span_number(in, *block, k0, span), column, S,
                        x + n * S);
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
