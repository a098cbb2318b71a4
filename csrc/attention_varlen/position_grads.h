// Gradients of the position terms of attention scores (positions.h), for every vector class V (csrc/simd/).
//
// The gradients dS of a tile's scores, each row shifted by one more than the next, are a band matrix: by query and
// distance for c2p, by key and distance for p2c. Two products with it give the gradients of the rows (q or k) and of
// the tables' vectors. The latter are summed by distance over the texts of a task, then by table row over tasks.
#pragma once

#include "attention_varlen/positions.h"

namespace {

using glimodern::AttentionGrads;

// Gradients by distance, in the order of PositionLayout, of one head and some texts.
template <class V>
struct PositionSums {
  float *c2p, *p2c, *bias;  // [count, dim], [count, dim], [count]

  PositionSums(const PositionLayout<V>& layout, float* sums)
      : c2p(sums), p2c(sums + layout.count * layout.dim), bias(sums + 2 * layout.count * layout.dim) {}
  static int64_t floats(const PositionLayout<V>& layout) { return layout.count * (2 * layout.dim + 1); }
};

template <class V>
class PositionGrads {
 public:
  // Floats of scratch for tiles of at most `queries` queries and `keys` keys, without the rounding of pieces.
  static int64_t scratch(const AttentionInputs& in, int64_t queries, int64_t keys) {
    return in.positions.rows == nullptr ? 0 : band_floats(queries, keys) + queries + round_up(keys, W) + W;
  }

  PositionGrads(const PositionScores<V>& scores, int64_t head, int64_t queries, int64_t keys, float* sums,
                ScratchPieces& pieces)
      : scores_(scores), in_(scores.in), layout_(scores.layout), sums_(layout_, sums) {
    if (!scores.exist) return;
    c2p_rows_ = in_.prepared.tables + head * in_.prepared.head_stride + layout_.c2p_rows;
    band_ = pieces.take(band_floats(queries, keys));
    by_query_ = pieces.take(queries);
    by_key_ = pieces.take(round_up(keys, W));
  }

  // A tile: ds [queries, stride] of the queries from `query` on with `keys` keys from `key` on, 0 for what is not
  // visible; q, k [.., dim] its rows, as gemm()'s B operands, q scaled. Adds to dq, dk [.., dim] and to the sums.
  void add(int64_t query, int64_t queries, int64_t key, int64_t keys, const float* ds, int64_t stride, const float* q,
           const float* k, float* dq, float* dk) const {
    const int64_t far = scores_.far_distance(query, queries, key, 0, keys);
    if (far != 0) return add_far(far, queries, keys, ds, stride, q, k, dq, dk);
    const int64_t first = layout_.origin - (query + queries - 1 - key);  // of c2p: the last query, the first key
    if (scores_.bias != nullptr) {
      for (int64_t r = 0; r < queries; ++r) {
        float* to = sums_.bias + first + queries - 1 - r;
        for (int64_t c = 0; c < keys; ++c) to[c] += ds[r * stride + c];
      }
    }
    if (scores_.c2p != nullptr) {
      fill_band(queries, keys, ds, stride);
      band_products(queries, keys, c2p_rows_ + first * layout_.dim, q, dq, sums_.c2p + first * layout_.dim);
    }
    if (scores_.p2c != nullptr) {
      const int64_t last = layout_.origin + query - (key + keys - 1);  // of p2c: the first query, the last key
      fill_band_transposed(queries, keys, ds, stride);
      band_products(keys, queries, scores_.p2c + last * layout_.dim, k, dk, sums_.p2c + last * layout_.dim);
    }
  }

 private:
  static constexpr int64_t W = V::width, G = panel_columns<V>();
  const PositionScores<V>& scores_;
  const AttentionInputs& in_;
  const PositionLayout<V>& layout_;
  const PositionSums<V> sums_;
  const float* c2p_rows_ = nullptr;
  float *band_ = nullptr, *by_query_ = nullptr, *by_key_ = nullptr;

  // Row r of a band of `rows` rows holds its elements from column kMargin + rows - 1 - r on, between zeros.
  static constexpr int64_t kMargin = 2 * V::gemm_rows < 16 ? 16 : round_up(2 * V::gemm_rows, 16);
  static int64_t band_stride(int64_t rows, int64_t columns) {
    return round_up(rows + columns + 2 * kMargin + W, 16) + kScorePadding;
  }
  static int64_t band_floats(int64_t queries, int64_t keys) {
    return max(queries * band_stride(queries, keys), keys * band_stride(keys, queries));
  }

  void fill_band(int64_t rows, int64_t columns, const float* ds, int64_t stride) const {
    const int64_t to_row = band_stride(rows, columns);
    clear<V>(band_, rows * to_row);
    for (int64_t r = 0; r < rows; ++r, ds += stride) {
      float* to = band_ + r * to_row + kMargin + rows - 1 - r;
      int64_t c = 0;
      for (; c + W <= columns; c += W) V::storeu(to + c, V::load(ds + c));
      for (; c < columns; ++c) to[c] = ds[c];
    }
  }

  // The band of ds transposed: its rows are the keys.
  void fill_band_transposed(int64_t queries, int64_t keys, const float* ds, int64_t stride) const {
    const int64_t to_row = band_stride(keys, queries);
    clear<V>(band_, keys * to_row);
    for (int64_t i = 0; i < queries; i += W) {
      for (int64_t j = 0; j < keys; j += W) {
        typename V::F x[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) x[r] = i + r < queries ? V::load(ds + (i + r) * stride + j) : V::zero();
        V::transpose(x);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          if (j + r < keys) V::storeu(band_ + (j + r) * to_row + kMargin + keys - 1 - (j + r) + i, x[r]);
        }
      }
    }
  }

  // d_own [rows, dim] += band table; d_table += band^T own. table: from the distance of the last row's first column on.
  void band_products(int64_t rows, int64_t columns, const float* table, const float* own, float* d_own,
                     float* d_table) const {
    const int64_t dim = layout_.dim, stride = band_stride(rows, columns);
    const float* band = band_ + kMargin;
    for (int64_t i = 0, n = 0; i < rows; i += n) {
      n = tile_rows(rows - i, V::gemm_rows);
      const int64_t from = rows - i - n;  // the first column of the tile's last row
      gemm<V, false>(n, dim, columns + n - 1, {band + i * stride + from, stride}, {table + from * dim, G, dim, W},
                     d_own + i * dim, dim, true);
    }
    for (int64_t x = 0, n = 0; x < rows + columns - 1; x += n) {
      n = tile_rows(rows + columns - 1 - x, V::gemm_rows);
      const int64_t r0 = max(0, rows - x - n), r1 = min(rows, rows - 1 - x + columns);  // rows that reach the tile
      gemm<V, true>(n, dim, r1 - r0, {band + r0 * stride + x, stride}, {own + r0 * dim, G, dim, W}, d_table + x * dim,
                    dim, true);
    }
  }

  // All distances of the tile share a table row.
  void add_far(int64_t distance, int64_t queries, int64_t keys, const float* ds, int64_t stride, const float* q,
               const float* k, float* dq, float* dk) const {
    const int64_t dim = layout_.dim, columns = round_up(keys, W);
    clear<V>(by_key_, columns);
    double total = 0.0;
    for (int64_t r = 0; r < queries; ++r, ds += stride) {
      auto sum = V::zero();
      for (int64_t c = 0; c < columns; c += W) {
        const auto x = V::load(ds + c);
        sum = V::add(sum, x);
        V::store(by_key_ + c, V::add(V::load(by_key_ + c), x));
      }
      const double row = V::reduce_add(sum);
      by_query_[r] = static_cast<float>(row);
      total += row;
    }
    const int64_t index = layout_.origin - distance, opposite = layout_.origin + distance;
    if (scores_.bias != nullptr) sums_.bias[index] += static_cast<float>(total);
    if (scores_.c2p != nullptr)
      far_products(by_query_, queries, c2p_rows_ + index * dim, q, dq, sums_.c2p + index * dim);
    if (scores_.p2c != nullptr) {
      far_products(by_key_, keys, scores_.p2c + opposite * dim, k, dk, sums_.p2c + opposite * dim);
    }
  }

  void far_products(const float* sums, int64_t rows, const float* vector, const float* own, float* d_own,
                    float* d_vector) const {
    const int64_t dim = layout_.dim;
    for (int64_t r = 0; r < rows; ++r, d_own += dim) {
      const auto factor = V::set1(sums[r]);
      for (int64_t h = 0; h < dim; h += W) V::store(d_own + h, V::fma(factor, V::load(vector + h), V::load(d_own + h)));
    }
    gemm<V, false>(1, dim, rows, {sums, rows}, {own, G, dim, W}, d_vector, dim, true);
  }
};

template <class V>
size_t position_sums_floats(const AttentionInputs& in) {
  return static_cast<size_t>(PositionSums<V>::floats(PositionLayout<V>(in)));
}

// Gradients of the tables for one head, from the sums of all tasks: `tasks` pieces `stride` apart, added in order.
template <class V, class T>
void reduce_positions(const AttentionInputs& in, const AttentionGrads& grads, int64_t head, const float* sums,
                      int64_t tasks, int64_t stride, float* scratch) {
  const PositionLayout<V> layout(in);
  const Positions& positions = in.positions;
  const int64_t dim = layout.dim;
  for (int side = 0; side < 2; ++side) {
    void* const result = side == 0 ? grads.grad_c2p : grads.grad_p2c;
    if ((side == 0 ? positions.c2p : positions.p2c) == nullptr) continue;
    clear<V>(scratch, positions.table_rows * dim);
    for (int64_t n = 0; n < layout.count; ++n) {
      const int64_t distance = side == 0 ? layout.origin - n : n - layout.origin;
      float* to = scratch + table_row(in, distance) * dim;
      for (int64_t task = 0; task < tasks; ++task) {
        const float* from = sums + task * stride + side * layout.count * dim + n * dim;
        for (int64_t h = 0; h < dim; h += V::width) V::store(to + h, V::add(V::load(to + h), V::load(from + h)));
      }
    }
    const float factor = side == 0 ? 1.0f : static_cast<float>(in.scale);
    unpack<V>(scratch, dim, positions.table_rows, in.head_dim, factor, static_cast<T*>(result) + head * in.head_dim,
              in.heads * in.head_dim);
  }
  if (positions.bias == nullptr) return;
  float* const result = static_cast<float*>(grads.grad_bias);
  for (int64_t row = 0; row < positions.table_rows; ++row) result[row * in.heads + head] = 0.0f;
  for (int64_t n = 0; n < layout.count; ++n) {
    for (int64_t task = 0; task < tasks; ++task) {
      const float* bias = PositionSums<V>(layout, const_cast<float*>(sums) + task * stride).bias;
      result[table_row(in, layout.origin - n) * in.heads + head] += bias[n];
    }
  }
}

}  // namespace
