// The tiled span scores, for every vector class V (csrc/simd/).
//
// For a block of words, score_columns() columns of b and u at a time (and of a) are copied into contiguous,
// zero-padded fp32 scratch: rows of H floats can lie a multiple of 4 KB apart and would share cache sets. fp32 rows of
// a, and of b if V::score_b_in_place, are read where they lie if they are whole vectors. A register tile of R spans x T
// types keeps R * T accumulators, with columns as lanes. Each tile computes its x = relu(a_i + b_j) anew: storing x for
// the later tiles cost more than it saved, on Zen 3, where additions and maxima have ports of their own, and on
// Sapphire Rapids with AVX-512, where they have not. Under dropout, whose hash is expensive, x of kGroupSpans spans is
// computed first. u is interleaved, [columns / V::width][T][V::width]: one stream for every T. All spans pass through
// one tile of types before the next, so that this tile and the b of neighbouring spans stay in L1.
#pragma once

#include "simd/rows.h"
#include "span_scores/blocks.h"

namespace {

// Prefetches the columns that come next into L2, their rows spread evenly over the register tiles.
class Prefetch {
 public:
  struct Rows {
    const char* row;
    int64_t rows, stride;  // stride: bytes
  };

  // bytes: of each row. tiles: the number of calls of next_row().
  Prefetch(Rows a, Rows b, Rows u, int64_t bytes, int64_t tiles)
      : parts_{a, b, u}, bytes_(bytes), tiles_(tiles), rows_(a.rows + b.rows + u.rows), row_(a.row) {}

  // The row that a tile prefetches, a line with every vector: lines in bursts would fill the queue of misses and stall
  // the loads behind them. If more rows than one are due, the others are prefetched here; if none is, the last one
  // again.
  const char* next_row() {
    due_ += rows_;
    if (due_ < tiles_) return row_;
    for (due_ -= tiles_; due_ >= tiles_; due_ -= tiles_) {
      const char* row = take();
      for (int64_t at = 0; at < bytes_; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
    return row_ = take();
  }

 private:
  const char* take() {
    while (parts_[part_].rows == 0) ++part_;
    Rows& part = parts_[part_];
    --part.rows;
    part.row += part.stride;
    return part.row - part.stride;
  }

  Rows parts_[3];
  int part_ = 0;
  int64_t bytes_, tiles_, rows_, due_ = 0;  // due_ / tiles_: rows
  const char* row_;
};

// sums[r * T + t] += the sum over columns of x_r * u_t. x_r = relu(a_r + b_r), or a_r itself if kReady.
// u [columns / V::width][T][V::width]. next: what to prefetch, as many fp32 columns.
template <class V, int R, int T, bool kReady>
void score_tile(const float* const (&a)[R], const float* const (&b)[R], const float* u, int64_t columns, float* sums,
                const char* next) {
  using F = typename V::F;
  const auto x_of = [&](int r, int64_t h, F zero) {
    return kReady ? V::load(a[r] + h) : V::max(zero, V::add(V::loadu(a[r] + h), V::loadu(b[r] + h)));
  };
  F sum[R * T];
#pragma GCC unroll 64
  for (int n = 0; n < R * T; ++n) sum[n] = V::zero();
#pragma GCC unroll 2
  for (int64_t h = 0; h < columns; h += V::width, u += T * V::width) {
    const F zero = V::local_zero();
    __builtin_prefetch(next, 0, 2), next += V::width * sizeof(float);
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
  V::add_sums(sum, sums);
}

// The operands of one pass over the spans, `columns` columns of each.
struct ScorePass {
  const Span* spans;
  int64_t columns;
  const float *a, *b;  // the block's words and the ends of its spans, rows a_stride and b_stride apart
  int64_t a_stride, b_stride;
  const float* x;  // [kGroupSpans, columns] ready span vectors of a group, or null
};

// Floats of a tile's sums: whole groups.
template <class V>
int tile_sums(int spans, int types) {
  return static_cast<int>(round_up(spans * types, V::sum_group));
}

// Spans [begin, end), R at a time, by a tile of T types. The last tile repeats its last span; those sums are not read.
template <class V, int R, int T>
void score_spans(const ScorePass& pass, int begin, int end, const float* u, float* sums, Prefetch& prefetch) {
  static_assert(kGroupSpans % R == 0, "groups are whole tiles");
  for (int first = begin; first < end; first += R) {
    const float* a[R];
    const float* b[R];
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      const int s = first + r < end ? first + r : end - 1;
      a[r] = pass.x ? pass.x + (s - begin) * pass.columns : pass.a + pass.spans[s].start * pass.a_stride;
      b[r] = pass.b + pass.spans[s].end * pass.b_stride;
    }
    if (pass.x)
      score_tile<V, R, T, true>(a, b, u, pass.columns, sums, prefetch.next_row());
    else
      score_tile<V, R, T, false>(a, b, u, pass.columns, sums, prefetch.next_row());
    sums += tile_sums<V>(R, T);
  }
}

template <class V, int T>
struct ScoreTypes {  // run(): score_spans by a tile of `types` types, 1 <= types <= T
  static void run(int types, const ScorePass& pass, int begin, int end, const float* u, float* sums,
                  Prefetch& prefetch) {
    if (types == T) return score_spans<V, V::tile_spans[T], T>(pass, begin, end, u, sums, prefetch);
    ScoreTypes<V, T - 1>::run(types, pass, begin, end, u, sums, prefetch);
  }
};
template <class V>
struct ScoreTypes<V, 0> {
  static void run(int, const ScorePass&, int, int, const float*, float*, Prefetch&) {}
};

// Types [first, first + types), `spans` spans per register tile, `tiles` register tiles. Their sums begin at `sums`.
template <class V>
struct TypeTile {
  int first, types, spans, tiles;
  int64_t sums;

  int64_t sums_at(int span) const { return sums + static_cast<int64_t>(span / spans) * tile_sums<V>(spans, types); }
};

// Cuts `types` types into tiles, nearly equal; returns their number.
template <class V>
int cut_types(int types, int spans, TypeTile<V>* tiles) {
  const int count = static_cast<int>(ceil_div(types, V::max_tile_types));
  int first = 0;
  int64_t sums = 0;
  for (int n = 0; n < count; ++n) {
    const int tile_types = static_cast<int>(ceil_div(types - first, count - n)), tile_spans = V::tile_spans[tile_types];
    tiles[n] = {first, tile_types, tile_spans, static_cast<int>(ceil_div(spans, tile_spans)), sums};
    first += tile_types;
    sums = tiles[n].sums_at(tiles[n].tiles * tile_spans);
  }
  return count;
}

// How many of rows [first, first + count) exist.
inline int64_t existing_rows(int64_t rows, int64_t first, int64_t count) {
  return first >= rows ? 0 : min(count, rows - first);
}

template <class V>
void score_block(const SpanInputs& in, const WordBlock& block, float* values, float* scratch) {
  const int64_t words = block.last - block.first;
  const int64_t step = score_columns<V>();
  const Matrix a{in.a, in.dtype, in.hidden}, b{in.b, in.dtype, in.hidden}, u{in.u, in.dtype, in.hidden};
  const bool dropout = in.dropout.enabled;
  const bool in_place = in.dtype == Dtype::fp32 && in.hidden % V::width == 0;
  float* packed_a = scratch;
  float* packed_b = packed_a + kBlockWords * step;
  float* packed_u = packed_b + kEndRows * step;
  float* x = packed_u + kTypeChunk * step;
  float* sums = x + kGroupSpans * step;
  Span spans[kBlockSpans];
  TypeTile<V> tiles[kTypeChunk];
  for (int64_t k0 = 0; k0 < block.widths(block.first, in.max_width); k0 += kWidthChunk) {
    const int64_t widths = min(kWidthChunk, in.max_width - k0);
    const int count = list_spans(in, block, k0, widths, spans);
    const int64_t ends = min(words + widths - 1, block.text_end - block.first - k0);
    for (int64_t t0 = 0; t0 < block.types; t0 += kTypeChunk) {
      const int types = static_cast<int>(min(kTypeChunk, block.types - t0));
      const int tile_count = cut_types<V>(types, count, tiles);
      int register_tiles = 0;
      for (int n = 0; n < tile_count; ++n) register_tiles += tiles[n].tiles;
      const TypeTile<V>& last = tiles[tile_count - 1];
      clear<V>(sums, last.sums_at(last.tiles * last.spans));
      for (int64_t h = 0; h < in.hidden; h += step) {
        const int64_t columns = min(step, in.hidden - h);
        const int64_t vectors = ceil_div(columns, V::width), padded = vectors * V::width;
        ScorePass pass{spans, padded, packed_a, packed_b, padded, padded, dropout ? x : nullptr};
        if (in_place) {
          pass.a = reinterpret_cast<const float*>(a.address(block.first, h));
          pass.a_stride = in.hidden;
        } else {
          pack<V>(a, block.first, words, h, columns, vectors, packed_a, padded, V::width);
        }
        if (in_place && V::score_b_in_place) {
          pass.b = reinterpret_cast<const float*>(b.address(block.first + k0, h));
          pass.b_stride = in.hidden;
        } else {
          pack<V>(b, block.first + k0, ends, h, columns, vectors, packed_b, padded, V::width);
        }
        for (int n = 0; n < tile_count; ++n) {
          pack<V>(u, block.first_type + t0 + tiles[n].first, tiles[n].types, h, columns, vectors,
                  packed_u + tiles[n].first * padded, V::width, tiles[n].types * V::width);
        }
        // Next come more columns of the same rows, or the first columns of the rows that follow in the batch.
        const bool same_rows = h + step < in.hidden;
        const int64_t next = same_rows ? h + step : 0;
        const int64_t bytes = a.address(0, min(step, in.hidden - next)) - a.address(0, 0);
        const int64_t stride = a.address(1, 0) - a.address(0, 0);
        const int64_t first_a = block.first + (same_rows ? 0 : words), first_b = first_a + k0,
                      first_u = block.first_type + t0 + (same_rows ? 0 : types);
        const int64_t rows_a = existing_rows(in.words, first_a, words), rows_b = existing_rows(in.words, first_b, ends),
                      rows_u = existing_rows(in.types, first_u, types);
        Prefetch prefetch({a.address(first_a, next), rows_a, stride}, {b.address(first_b, next), rows_b, stride},
                          {u.address(first_u, next), rows_u, stride}, bytes, register_tiles);
        for (int first = 0, group = dropout ? kGroupSpans : count; first < count; first += group) {
          const int end = static_cast<int>(min(first + group, count));
          for (int s = first; dropout && s < end; ++s) {
            span_vector<V>(in, pass.a + spans[s].start * pass.a_stride, pass.b + spans[s].end * pass.b_stride,
                           mask_row(in, block, k0, spans[s]), h, padded, x + (s - first) * padded);
          }
          for (int n = 0; n < tile_count; ++n) {
            ScoreTypes<V, V::max_tile_types>::run(tiles[n].types, pass, first, end, packed_u + tiles[n].first * padded,
                                                  sums + tiles[n].sums_at(first), prefetch);
          }
        }
      }
      const float* bias = static_cast<const float*>(in.c) + block.first_type + t0;
      for (int n = 0; n < tile_count; ++n) {
        const TypeTile<V>& tile = tiles[n];
        const float* sum = sums + tile.sums;
        for (int first = 0; first < count; first += tile.spans, sum += tile_sums<V>(tile.spans, tile.types)) {
          for (int r = 0; r < tile.spans && first + r < count; ++r) {
            float* value = values + spans[first + r].value + t0 + tile.first;
            for (int t = 0; t < tile.types; ++t) value[t] = bias[tile.first + t] + sum[r * tile.types + t];
          }
        }
      }
    }
  }
}

}  // namespace
