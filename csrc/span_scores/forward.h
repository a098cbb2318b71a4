// The tiled span scores, for every vector class V (csrc/simd/).
//
// For a block of words, kScoreColumns columns of b and u at a time (and of a, unless it can be read in place) are
// copied into contiguous, zero-padded fp32 scratch: rows of H floats can lie a multiple of 4 KB apart and would share
// cache sets. A register tile of R spans x T types keeps R * T accumulators, with columns as lanes. Each tile computes
// its x = relu(a_i + b_j) anew: on Zen 3, additions and maxima have ports of their own, and storing x for the later
// tiles cost more than it saved. Under dropout, whose hash is expensive, x of kGroupSpans spans is computed first. u is
// interleaved, [columns / V::width][T][V::width]: one stream for every T. All spans pass through one tile of types
// before the next, so that this tile and the b of neighbouring spans stay in L1.
#pragma once

#include "simd/rows.h"
#include "span_scores/blocks.h"

namespace {

// Prefetches the columns that are packed next, a few lines with every register tile.
struct Prefetch {
  struct Rows {
    const char* row;
    int64_t rows, stride;  // stride: bytes
  };
  Rows parts[3];  // of a, b, u
  int64_t bytes;  // of each row
  int64_t lines_per_step;
  int64_t part = 0, at = 0;

  void step() {
    for (int64_t n = 0; n < lines_per_step && part < 3; ++n) {
      Rows& now = parts[part];
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

// sums[r * T + t] += the sum over columns of x_r * u_t. x_r = relu(a_r + b_r), or a_r itself if kReady.
// u [columns / V::width][T][V::width].
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
    _mm_store_ps(sums + n, _mm_add_ps(_mm_load_ps(sums + n), V::reduce_add4(sum[n], x1, x2, x3)));
  }
}

// The operands of one pass over the spans, `columns` columns of each.
struct ScorePass {
  const Span* spans;
  int64_t columns;
  const float* a;  // the block's words, rows a_stride apart
  int64_t a_stride;
  const float* b;  // [words + widths - 1, columns]
  const float* x;  // [kGroupSpans, columns] ready span vectors of a group, or null
};

// Floats of a tile's sums: whole groups of four.
inline int tile_sums(int spans, int types) { return (spans * types + 3) / 4 * 4; }

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
      b[r] = pass.b + pass.spans[s].end * pass.columns;
    }
    if (pass.x)
      score_tile<V, R, T, true>(a, b, u, pass.columns, sums);
    else
      score_tile<V, R, T, false>(a, b, u, pass.columns, sums);
    prefetch.step();
    sums += tile_sums(R, T);
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
struct TypeTile {
  int first, types, spans, tiles;
  int64_t sums;

  int64_t sums_at(int span) const { return sums + static_cast<int64_t>(span / spans) * tile_sums(spans, types); }
};

// Cuts `types` types into tiles, nearly equal; returns their number.
template <class V>
int cut_types(int types, int spans, TypeTile* tiles) {
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
  constexpr int64_t step = kScoreColumns;
  static_assert(step % V::width == 0, "columns are whole vectors");
  const Matrix a{in.a, in.dtype, in.hidden}, b{in.b, in.dtype, in.hidden}, u{in.u, in.dtype, in.hidden};
  const bool dropout = in.dropout.enabled;
  const bool a_in_place = in.dtype == Dtype::fp32 && in.hidden % V::width == 0 && !dropout;
  float* packed_a = scratch;
  float* packed_b = packed_a + kBlockWords * step;
  float* packed_u = packed_b + kEndRows * step;
  float* x = packed_u + kTypeChunk * step;
  float* sums = x + kGroupSpans * step;
  Span spans[kBlockSpans];
  TypeTile tiles[kTypeChunk];
  for (int64_t k0 = 0; k0 < block.widths(block.first, in.max_width); k0 += kWidthChunk) {
    const int64_t widths = min(kWidthChunk, in.max_width - k0);
    const int count = list_spans(in, block, k0, widths, spans);
    const int64_t ends = min(words + widths - 1, block.text_end - block.first - k0);
    for (int64_t t0 = 0; t0 < block.types; t0 += kTypeChunk) {
      const int types = static_cast<int>(min(kTypeChunk, block.types - t0));
      const int tile_count = cut_types<V>(types, count, tiles);
      int register_tiles = 0;
      for (int n = 0; n < tile_count; ++n) register_tiles += tiles[n].tiles;
      const TypeTile& last = tiles[tile_count - 1];
      clear<V>(sums, last.sums_at(last.tiles * last.spans));
      for (int64_t h = 0; h < in.hidden; h += step) {
        const int64_t columns = min(step, in.hidden - h);
        const int64_t vectors = ceil_div(columns, V::width), padded = vectors * V::width;
        ScorePass pass{spans, padded, packed_a, padded, packed_b, dropout ? x : nullptr};
        if (a_in_place) {
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
        // Next come more columns of the same rows, or the first columns of the rows that follow in the batch.
        const bool same_rows = h + step < in.hidden;
        const int64_t next = same_rows ? h + step : 0;
        const int64_t bytes = a.address(0, min(step, in.hidden - next)) - a.address(0, 0);
        const int64_t stride = a.address(1, 0) - a.address(0, 0);
        const int64_t first_a = block.first + (same_rows ? 0 : words), first_b = first_a + k0,
                      first_u = block.first_type + t0 + (same_rows ? 0 : types);
        const int64_t rows_a = existing_rows(in.words, first_a, words), rows_b = existing_rows(in.words, first_b, ends),
                      rows_u = existing_rows(in.types, first_u, types);
        Prefetch prefetch{{{a.address(first_a, next), rows_a, stride},
                           {b.address(first_b, next), rows_b, stride},
                           {u.address(first_u, next), rows_u, stride}},
                          bytes,
                          (rows_a + rows_b + rows_u) * ceil_div(bytes, 64) / register_tiles + 1};
        for (int first = 0, group = dropout ? kGroupSpans : count; first < count; first += group) {
          const int end = static_cast<int>(min(first + group, count));
          for (int s = first; dropout && s < end; ++s) {
            span_vector<V>(in, packed_a + spans[s].start * padded, packed_b + spans[s].end * padded,
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
        const TypeTile& tile = tiles[n];
        const float* sum = sums + tile.sums;
        for (int first = 0; first < count; first += tile.spans, sum += tile_sums(tile.spans, tile.types)) {
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
