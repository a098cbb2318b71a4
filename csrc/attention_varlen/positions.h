// The terms of attention scores that depend on relative distance, for every vector class V (csrc/simd/).
//
//     s(i, j) += q_i . c2p[d] + k_j . p2c[d] + bias[d]      d = i - j
//
// A tile of queries and keys has as many distances as it has rows and columns, less one. Its queries times the vectors
// of these distances are a matrix whose rows need a shift, each by one more than the next, to lie below the scores: the
// "relative shift" of https://arxiv.org/abs/1901.02860. The vectors times its keys need the same shift of columns.
//
// Distances of at least `reach` share a table row at either end. A tile that has only such distances is far: its terms
// are one number per query plus one per key.
#pragma once

#include "attention_varlen/blocks.h"
#include "attention_varlen/pack.h"
#include "simd/rows.h"

namespace {

using glimodern::Positions;

// One head's tables, by distance: index origin - d for c2p and bias, origin + d for p2c. P: the vector class of the
// GEMMs. If it differs from V, it multiplies pairs of bf16 elements, and a row has `depth` pairs.
template <class V, class P = V>
struct PositionLayout {
  static constexpr bool kPairs = !kSame<V, P>;
  int64_t origin, count;  // count: of indices, whole vectors
  int64_t depth, dim;     // dim: the stride of rows
  // Offsets: c2p as the B operand of gemm(), panels [depth, V::width]; p2c as the A operand, rows [count, dim]; bias
  // [count]; c2p in rows [count, dim], for the backward pass only.
  int64_t c2p, p2c, bias, c2p_rows, floats;

  explicit PositionLayout(const AttentionInputs& in)
      : depth(kPairs ? in.head_dim / 2 : in.head_dim), dim(round_up(depth, V::width)) {
    // Tiles read up to a vector beyond the distances that they have, on either side, and to the end of a panel.
    const int64_t half = in.prepared.half, margin = 2 * V::width;
    origin = half + margin;
    count = round_up(2 * origin + 1, V::width);
    const Positions& positions = in.positions;
    c2p = 0;
    p2c = c2p + (positions.c2p == nullptr ? 0 : count * depth);
    bias = p2c + (positions.p2c == nullptr ? 0 : count * dim);
    c2p_rows = bias + (positions.bias == nullptr ? 0 : count);
    floats = c2p_rows + (positions.c2p == nullptr || !in.prepared.backward ? 0 : count * dim);
  }
};

// The largest distance that tables hold for texts of max_seqlen tokens: beyond `reach` lie only tiles that begin before
// it.
template <class V>
int64_t position_half(const AttentionInputs& in, int64_t max_seqlen) {
  const int64_t queries = max(kRowTiles * V::gemm_rows, kBackwardQueries);
  const int64_t keys = in.window < max_seqlen ? kWindowKeys : max(kForwardKeys, kBackwardKeys);
  return min(max_seqlen - 1, in.positions.reach + queries + keys + 2 * V::width);
}

inline int64_t table_row(const AttentionInputs& in, int64_t distance) {
  const int64_t reach = in.positions.reach;
  return in.positions.rows[max(-reach, min(distance, reach)) + reach];
}

// The prepared tables of one head.
template <class V, class T, class P = V>
void prepare_positions(const AttentionInputs& in, int64_t head, float* tables) {
  constexpr int64_t W = V::width;
  const PositionLayout<V, P> layout(in);
  const Positions& positions = in.positions;
  const auto vector = [&](const void* table, int64_t distance) {
    return static_cast<const T*>(table) + (table_row(in, distance) * in.heads + head) * in.head_dim;
  };
  for (int64_t n = 0; n < layout.count; ++n) {
    if (positions.bias != nullptr) {
      const int64_t row = table_row(in, layout.origin - n);
      tables[layout.bias + n] = static_cast<const float*>(positions.bias)[row * in.heads + head];
    }
    if (positions.p2c != nullptr) {
      const T* from = vector(positions.p2c, n - layout.origin);
      float* to = tables + layout.p2c + n * layout.dim;
      if constexpr (layout.kPairs) {
        __builtin_memcpy(to, from, static_cast<size_t>(in.head_dim) * sizeof(T));
      } else {
        pack<V>(from, 0, 1, in.head_dim, layout.dim, static_cast<float>(in.scale), to);
      }
    }
    if (positions.c2p != nullptr && in.prepared.backward) {
      pack<V>(vector(positions.c2p, layout.origin - n), 0, 1, in.head_dim, layout.dim, 1.0f,
              tables + layout.c2p_rows + n * layout.dim);
    }
  }
  if (positions.c2p == nullptr) return;
  for (int64_t first = 0; first < layout.count; first += W) {
    const auto row = [&](int64_t n) {
      const T* from = vector(positions.c2p, layout.origin - (first + n));
      if constexpr (layout.kPairs) {
        return reinterpret_cast<const float*>(from);
      } else {
        return from;
      }
    };
    transpose_rows<V>(row, W, layout.depth, tables + layout.c2p + first * layout.depth, W);
  }
}

// z[r], lane n <- z[r + V::width - 1 - n], lane n, for V::width rows of z [2 V::width - 1].
template <class V, int bit = V::width / 2>
inline __attribute__((always_inline)) void shift_columns(typename V::F* z) {
#pragma GCC unroll 32
  for (int r = 0; r < V::width + bit - 1; ++r) z[r] = V::template where_reversed_lane<bit>(z[r + bit], z[r]);
  if constexpr (bit > 1) shift_columns<V, bit / 2>(z);
}

// Adds the terms to the scores of tiles of one head.
template <class V, class P = V>
struct PositionScores {
  static constexpr int64_t W = V::width, G = panel_columns<V>();

  const AttentionInputs& in;
  const PositionLayout<V, P> layout;
  const bool exist;
  const float* c2p = nullptr;  // tables; null: none
  const float *p2c = nullptr, *bias = nullptr;

  // Floats of scratch for tiles of at most `queries` queries and `keys` keys, without the rounding of pieces.
  static int64_t scratch(const AttentionInputs& in, int64_t queries, int64_t keys) {
    if (in.positions.rows == nullptr) return 0;
    return V::gemm_rows * stride_of(keys) + (queries + 2 * W) * W + queries * W + 2 * round_up(keys, G);
  }

  PositionScores(const AttentionInputs& inputs, int64_t head, int64_t queries, int64_t keys, ScratchPieces& pieces)
      : in(inputs), layout(inputs), exist(in.positions.rows != nullptr) {
    if (!exist) return;
    const float* tables = in.prepared.tables + head * in.prepared.head_stride;
    if (in.positions.c2p != nullptr) c2p = tables + layout.c2p;
    if (in.positions.p2c != nullptr) p2c = tables + layout.p2c;
    if (in.positions.bias != nullptr) bias = tables + layout.bias;
    if (layout.kPairs) factor_ = static_cast<float>(in.scale);
    stride_ = stride_of(keys);
    shifted_ = pieces.take(V::gemm_rows * stride_);
    columns_ = pieces.take((queries + 2 * W) * W);
    far_queries_ = pieces.take(queries * W);
    far_keys_ = pieces.take(round_up(keys, G));
    zeros_ = pieces.take(round_up(keys, G));
    clear<V>(zeros_, round_up(keys, G));
  }

  // The distance that all of a tile's distances count as; 0: they differ. Columns [c0, c1).
  int64_t far_distance(int64_t query, int64_t rows, int64_t key, int64_t c0, int64_t c1) const {
    const int64_t nearest = query - (key + c1 - 1), farthest = query + rows - 1 - (key + c0),
                  reach = in.positions.reach;
    return reach == 0 || nearest >= reach ? max(reach, 1) : farthest <= -reach ? -reach : 0;
  }

  // s [rows, stride]: scores of the queries from `query` on with the keys from `key` on, columns [c0, c1), multiples of
  // W. q: these queries; kt: the B operand that they were multiplied by.
  void add(int64_t query, int64_t rows, int64_t key, int64_t c0, int64_t c1, AOperand q, const float* kt, float* s,
           int64_t stride) const {
    const int64_t far = far_distance(query, rows, key, c0, c1);
    if (far != 0) return add_far(far, rows, c0, c1, q, kt, s, stride);
    if (p2c != nullptr) add_columns(query, rows, key, c0, c1, kt, s, stride);
    for (int64_t i = 0, n = 0; i < rows; i += n) {
      n = tile_rows(rows - i, V::gemm_rows);
      const int64_t first = layout.origin - (query + i + n - 1 - (key + c0));  // index of row n - 1, column c0
      if (c2p != nullptr) {
        gemm<P, false>(n, round_up(first % W + c1 - c0 + n - 1, W), layout.depth, {q.data + i * q.stride, q.stride},
                       {c2p + first / W * W * layout.depth, 2 * layout.depth * W, W, layout.depth * W}, shifted_,
                       stride_, false);
      }
      for (int64_t r = 0; r < n; ++r) {
        const int64_t shift = n - 1 - r - c0;
        const float* term = c2p == nullptr ? zeros_ - c0 : shifted_ + r * stride_ + first % W + shift;
        const float* row_bias = bias == nullptr ? zeros_ - c0 : bias + first + shift;
        float* row = s + (i + r) * stride;
        for (int64_t c = c0; c < c1; c += W) finish(row + c, V::loadu(term + c), V::loadu(row_bias + c));
      }
    }
  }

 private:
  float factor_ = 1.0f;  // of the scores before the bias: q is scaled already, unless pairs are multiplied
  int64_t stride_ = 0;   // of shifted_
  float *shifted_ = nullptr, *columns_ = nullptr, *far_queries_ = nullptr, *far_keys_ = nullptr, *zeros_ = nullptr;

  static int64_t stride_of(int64_t keys) { return round_up(keys + V::gemm_rows + 2 * W, 16); }

  void finish(float* score, typename V::F term, typename V::F score_bias) const {
    V::store(score, V::fma(V::set1(factor_), V::add(V::load(score), term), score_bias));
  }

  static BOperand panel_of(const float* kt, int64_t depth, int64_t column) {
    return {kt + column / G * G * depth + column % G, G * depth, G, W};
  }

  // p2c: the vectors of all distances of W keys times these keys, columns shifted.
  void add_columns(int64_t query, int64_t rows, int64_t key, int64_t c0, int64_t c1, const float* kt, float* s,
                   int64_t stride) const {
    for (int64_t c = c0; c < c1; c += W) {
      const int64_t first = layout.origin + query - (key + c + W - 1);
      gemm<P, false>(rows + W - 1, W, layout.depth, {p2c + first * layout.dim, layout.dim},
                     panel_of(kt, layout.depth, c), columns_, W, false);
      for (int64_t i = 0; i < rows; i += W) {
        typename V::F z[2 * W - 1];
#pragma GCC unroll 32
        for (int r = 0; r < 2 * W - 1; ++r) z[r] = V::load(columns_ + (i + r) * W);
        shift_columns<V>(z);
        float* row = s + i * stride + c;
        const int64_t count = min(W, rows - i);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r, row += stride) {
          if (r < count) V::store(row, V::add(V::load(row), z[r]));
        }
      }
    }
  }

  void add_far(int64_t distance, int64_t rows, int64_t c0, int64_t c1, AOperand q, const float* kt, float* s,
               int64_t stride) const {
    const int64_t index = layout.origin - distance;  // of c2p and bias
    if (c2p != nullptr) {
      gemm<P, false>(rows, W, layout.depth, q, {c2p + index / W * W * layout.depth, 0, W, 0}, far_queries_, W, false);
    }
    const float* keys = zeros_;
    if (p2c != nullptr) {
      for (int64_t c = c0; c < c1; c += W) {
        gemm<P, false>(1, W, layout.depth, {p2c + (layout.origin + distance) * layout.dim, layout.dim},
                       panel_of(kt, layout.depth, c), far_keys_ + c, W, false);
      }
      keys = far_keys_;
    }
    const auto far_bias = V::set1(bias == nullptr ? 0.0f : bias[index]);
    for (int64_t r = 0; r < rows; ++r, s += stride) {
      const auto of_query = V::set1(c2p == nullptr ? 0.0f : far_queries_[r * W + index % W]);
      for (int64_t c = c0; c < c1; c += W) finish(s + c, V::add(of_query, V::load(keys + c)), far_bias);
    }
  }
};

}  // namespace
