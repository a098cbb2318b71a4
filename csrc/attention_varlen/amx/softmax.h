// The softmax of the AMX attention forward pass, on tiles of scores.
#pragma once

#include "attention_varlen/amx/exp2.h"
#include "attention_varlen/amx/products.h"
#include "dropout_mask.h"

namespace glimodern {
namespace {

// A row's running maximum may lie below its largest score by up to this many powers of two before its sums are
// rescaled. So the argument of exp2_tile() reaches 8, far from overflow, and probabilities reach 2^8.
constexpr float kHeadroom = 8.0f;

// Lane r of the result: all lanes of x[r], combined.
template <class Combine>
F reduce_rows(const F* x, Combine combine) {
  F y[8], z[4], w[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    y[i] = combine(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // the four 128-bit parts of z[i]: rows i, i + 8, i + 4, i + 12
    z[i] = combine(_mm512_shuffle_f32x4(y[i], y[i + 4], 0x88), _mm512_shuffle_f32x4(y[i], y[i + 4], 0xDD));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) w[i] = combine(_mm512_unpacklo_ps(z[i], z[i + 2]), _mm512_unpackhi_ps(z[i], z[i + 2]));
  const F all = combine(_mm512_unpacklo_ps(w[0], w[1]), _mm512_unpackhi_ps(w[0], w[1]));
  return _mm512_shuffle_f32x4(all, all, 0xD8);
}

// Lane r: the largest score of row r.
F row_max(const float* s, int64_t tiles) {
  F x[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) x[r] = V::load(s + r * 16);
  for (int64_t t = 1; t < tiles; ++t) {
    s += kTileFloats;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = V::max(x[r], V::load(s + r * 16));
  }
  return reduce_rows(x, [](F a, F b) { return V::max(a, b); });
}

template <int N>
struct Count {
  static constexpr int value = N;
};

struct Softmax {
  float scale;               // of scores, to powers of two
  const float* shift;        // [16] the running maximum, scaled
  const uint32_t* counters;  // [16] of the dropout mask, in the first column
  uint32_t threshold;        // of the dropout mask
};

// Replaces every pair of score tiles by one pair of tiles of bf16 probabilities 2^(scale s - shift), 0 where dropped,
// in the place of the pair's first tile. sum [16 rows, 16 lanes] += the probabilities before dropout.
//
// Interleaves the tile products, one at a time, with the vectors' work: instructions retire in order, and a tile
// product takes 52 cycles. These are the next query tile's scores, and the values' sums of the previous pair.
// overlap(t) is called once per pair, for other work.
template <bool kDropout, class Overlap>
void softmax_tiles(float* s, int64_t tiles, const Softmax& softmax, float* sum, const ScoreProduct& scores,
                   const ValueProduct& values, const Overlap& overlap) {
  const F factor = V::set1(softmax.scale);
  const V::I threshold = V::set1(softmax.threshold), lanes = V::mul(V::lanes(), V::set1(kGolden));
  int64_t t = 0;
  float* pair = s;
  constexpr int kRows = 2;
  // Rows r to r + kRows - 1 of N score tiles.
  const auto rows = [&](auto count, int r) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    F x[kRows * N];
#pragma GCC unroll 8
    for (int n = 0; n < kRows * N; ++n) {
      const F score = V::load(pair + n % N * kTileFloats + (r + n / N) * 16);
      x[n] = V::fms(factor, score, V::set1(softmax.shift[r + n / N]));
    }
    exp2_tile<kRows * N>(x);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      F first = x[n * N], second = N == 2 ? x[n * N + N - 1] : V::zero();
      float* const to = sum + (r + n) * 16;
      V::store(to, V::add(V::load(to), N == 2 ? V::add(first, second) : first));
      if (kDropout) {
        const auto counter = V::add(lanes, V::set1(softmax.counters[r + n] + static_cast<uint32_t>(t * 16) * kGolden));
        first = V::where_at_least(mix32_lanes<V>(counter), threshold, first);
        second = V::where_at_least(mix32_lanes<V>(V::add(counter, V::set1(16 * kGolden))), threshold, second);
      }
      const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
      __builtin_memcpy(pair + (r + n) * 16, &both, sizeof both);
    }
  };
  const bool two_steps = scores.depth == 2;
  // The n-th of 8 slots for a tile product in a pair. With a depth of 1 or 2 the steps of the scores are spread over
  // the slots; with more they all run in the first slot.
  const auto slot = [&](int n) __attribute__((always_inline)) {
    if (n == 0) {
      if (scores.depth > 2) return scores.multiply_pair(t);
      if (t > 0) scores.store_first(t - 2);
      scores.load_queries(t, 0);
      scores.multiply_first<true>(t, 0);
    }
    if (n == 1 && scores.depth <= 2) {
      if (t > 0) scores.store_second(t - 2);
      scores.multiply_second<true>(t, 0);
    }
    if (n == 4 && two_steps) {
      scores.load_queries(t, 1);
      scores.multiply_first<false>(t, 1);
    }
    if (n == 5 && two_steps) scores.multiply_second<false>(t, 1);
    if (t == 0) return;
    if (n == 2 || n == 6) values.load_probabilities(t - 2);
    if (n == 2) values.multiply_column<0>(t - 2);
    if (n == 3) values.multiply_column<1>(t - 2);
    if (n == 6) values.multiply_column<2>(t - 2);
    if (n == 7) values.multiply_column<3>(t - 2);
  };
  for (; t + 2 <= tiles; t += 2, pair += 2 * kTileFloats) {
    GLIMODERN_TILE_BARRIER;
    overlap(t);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += kRows) {
      slot(r / 2);
      rows(Count<2>{}, r);
    }
  }
  GLIMODERN_TILE_BARRIER;
  if (t < tiles) {
    overlap(t);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += kRows) {
      slot(r / 2);
      rows(Count<1>{}, r);
    }
    t += 2;
    GLIMODERN_TILE_BARRIER;
  }
  if (scores.depth <= 2) {
    scores.store_first(t - 2);
    scores.store_second(t - 2);
  }
  values.load_probabilities(t - 2);
  values.multiply_column<0>(t - 2);
  values.multiply_column<1>(t - 2);
  values.multiply_column<2>(t - 2);
  values.multiply_column<3>(t - 2);
  for (; t < scores.tiles; t += 2) scores.multiply_pair(t);
  GLIMODERN_TILE_BARRIER;
}

}  // namespace
}  // namespace glimodern
