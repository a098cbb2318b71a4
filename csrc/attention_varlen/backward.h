// The attention backward pass, for every vector class V (csrc/simd/) and storage type T (float, Bf16).
//
// A block of keys at a time against blocks of queries. P is recomputed from S and lse; dP = dO V^T; dS = P * (dropped
// dP - delta) with delta = dO . O by query; dQ = dS K, dK = dS^T Q, dV = P^T dO. Keys are the lanes of S and dP,
// elements of the head those of the other products. Unnamed namespace: see forward.h.
#pragma once

#include "attention_varlen/blocks.h"
#include "attention_varlen/pack.h"
#include "attention_varlen/position_grads.h"
#include "attention_varlen/softmax.h"
#include "simd/rows.h"

namespace {

using glimodern::AttentionGrads;

template <class V>
size_t backward_scratch(const AttentionInputs& in, int64_t max_seqlen) {
  const int64_t dim = padded_dim<V>(in), queries = min(max_seqlen, kBackwardQueries);
  const int64_t keys = round_up(min(max_seqlen, kBackwardKeys), panel_columns<V>());
  return static_cast<size_t>(max_seqlen * dim + queries * (2 * dim + 1) + 5 * keys * dim +
                             2 * queries * (keys + kScorePadding) + PositionScores<V>::scratch(in, queries, keys) +
                             PositionGrads<V>::scratch(in, queries, keys) + 16 * kMaxPieces);
}

template <class V, class T>
float dot(const float* x, const T* y, int64_t n) {
  auto sum = V::zero();
  int64_t h = 0;
  for (; h + V::width <= n; h += V::width) sum = V::fma(V::load(x + h), V::loadu(y + h), sum);
  double rest = 0.0;
  for (; h < n; ++h) rest += x[h] * widen(y[h]);
  return static_cast<float>(V::reduce_add(sum) + rest);
}

// One query's row. p: scores -> probabilities times the dropout mask and its scale; ds: dP -> dS.
template <class V>
void score_gradients(const AttentionInputs& in, const ProbabilityDropout<V>& dropout, const KeyRange& visible,
                     int64_t c0, int64_t c1, float lse, float delta, float* p, float* ds) {
  mask_row<V>(visible, c0, c1, p);
  const auto shift = V::set1(lse), mean = V::set1(delta);
  const auto keep_scale = V::set1(static_cast<float>(in.dropout.keep_scale));
  for (int64_t j = c0; j < c1; j += V::width) {
    const auto x = exp_softmax<V>(V::sub(V::load(p + j), shift));
    auto dropped = x, dx = V::load(ds + j);
    if (in.dropout.enabled) {
      dropped = dropout.apply(j, V::mul(keep_scale, x));
      dx = dropout.apply(j, V::mul(keep_scale, dx));
    }
    V::store(p + j, dropped);
    V::store(ds + j, V::mul(x, V::sub(dx, mean)));
  }
}

template <class V, class T>
void attention_backward(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                        float* scratch) {
  constexpr int64_t W = V::width, G = panel_columns<V>();
  const int64_t dim = padded_dim<V>(in), length = task.end - task.start, tokens = in.tokens();
  const int64_t blocks = ceil_div(length, kBackwardKeys);
  const int batch = in.window < length ? V::gemm_rows : static_cast<int>(kBackwardKeys);  // rows of a GEMM
  const int64_t max_block = round_up(ceil_div(length, blocks), G), stride = max_block + kScorePadding;
  const int64_t max_queries = min(length, kBackwardQueries);
  ScratchPieces pieces{scratch};
  float* dq = pieces.take(length * dim);
  float* q = pieces.take(max_queries * dim);
  float* g = pieces.take(max_queries * dim);  // dO
  float* delta = pieces.take(max_queries);
  float* kt = pieces.take(max_block * dim);
  float* vt = pieces.take(max_block * dim);
  float* k = pieces.take(max_block * dim);
  float* dk = pieces.take(max_block * dim);
  float* dv = pieces.take(max_block * dim);
  float* p = pieces.take(max_queries * stride);
  float* ds = pieces.take(max_queries * stride);
  const PositionScores<V> positions(in, task.head, max_queries, max_block, pieces);
  const PositionGrads<V> position_grads(positions, task.head, max_queries, max_block, task.position_sums, pieces);

  const AttentionRows* const operands[] = {&in.q, &in.k, &in.v, &grads.grad_out, &grads.out};
  const float* lse = static_cast<const float*>(grads.lse);
  if (blocks > 1) clear<V>(dq, length * dim);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = task.start + length * block / blocks, k1 = task.start + length * (block + 1) / blocks;
    const int64_t keys = k1 - k0;
    const T* first_k = row_of<T>(in.k, k0, task.head);
    pack<V>(first_k, in.k.row, keys, in.head_dim, dim, 1.0f, k);
    pack_transposed<V>(first_k, in.k.row, keys, in.head_dim, kt);
    pack_transposed<V>(row_of<T>(in.v, k0, task.head), in.v.row, keys, in.head_dim, vt);
    const int64_t first_query = max(task.start, k0 - in.window), last_query = min(task.end, k1 + in.window);
    const int64_t query_blocks = ceil_div(last_query - first_query, kBackwardQueries);
    if (query_blocks > 1) clear<V>(dk, keys * dim), clear<V>(dv, keys * dim);
    for (int64_t query_block = 0; query_block < query_blocks; ++query_block) {
      const int64_t q0 = first_query + (last_query - first_query) * query_block / query_blocks;
      const int64_t q1 = first_query + (last_query - first_query) * (query_block + 1) / query_blocks;
      const int64_t queries = q1 - q0;
      pack<V>(row_of<T>(in.q, q0, task.head), in.q.row, queries, in.head_dim, dim, static_cast<float>(in.scale), q);
      pack<V>(row_of<T>(grads.grad_out, q0, task.head), grads.grad_out.row, queries, in.head_dim, dim, 1.0f, g);
      for (int64_t i = 0; i < queries; ++i) {
        delta[i] = dot<V>(g + i * dim, row_of<T>(grads.out, q0 + i, task.head), in.head_dim);
      }
      for (int64_t i = 0, rows = 0; i < queries; i += rows) {
        rows = tile_rows(queries - i, batch);
        const KeyRange visible = visible_keys(in, q0 + i, q0 + i + rows, k0, k1);
        float *row_p = p + i * stride, *row_ds = ds + i * stride;
        const int64_t c0 = max(visible.first, 0) / G * G, c1 = round_up(max(visible.last, 0), W);
        if (visible.first < visible.last) {
          gemm<V, false>(rows, c1 - c0, in.head_dim, {q + i * dim, dim}, {kt + c0 * in.head_dim, G * in.head_dim, G, W},
                         row_p + c0, stride, false);
          gemm<V, false>(rows, c1 - c0, in.head_dim, {g + i * dim, dim}, {vt + c0 * in.head_dim, G * in.head_dim, G, W},
                         row_ds + c0, stride, false);
          if (positions.exist) positions.add(q0 + i, rows, k0, c0, c1, {q + i * dim, dim}, kt, row_p, stride);
        }
        for (int64_t r = 0; r < rows; ++r, row_p += stride, row_ds += stride) {
          const int64_t query = q0 + i + r;
          for (const AttentionRows* operand : operands) {
            if (block == 0 && task.head + 1 < in.heads) prefetch<T, false>(*operand, query, task.head + 1, in.head_dim);
          }
          if (visible.first >= visible.last) {
            clear<V>(row_p, round_up(keys, W));
            clear<V>(row_ds, round_up(keys, W));
            continue;
          }
          score_gradients<V>(in, ProbabilityDropout<V>(in, task, query, k0 - task.start),
                             visible_keys(in, query, query + 1, k0, k1), c0, c1, lse[task.head * tokens + query],
                             delta[i + r], row_p, row_ds);
          clear<V>(row_p, c0), clear<V>(row_ds, c0);  // keys that no query of the batch sees
          clear<V>(row_p + c1, round_up(keys, W) - c1), clear<V>(row_ds + c1, round_up(keys, W) - c1);
        }
        if (visible.first >= visible.last) continue;
        gemm<V, false>(rows, dim, visible.last - visible.first, {ds + i * stride + visible.first, stride},
                       {k + visible.first * dim, G, dim, W}, dq + (q0 - task.start + i) * dim, dim, blocks > 1);
      }
      for (int side = 0; side < 2; ++side) {  // dV, then dK: each GEMM finds its B operand in L1
        const float *a = side == 0 ? p : ds, *b = side == 0 ? g : q;
        float* sums = side == 0 ? dv : dk;
        for (int64_t j = 0, rows = 0; j < keys; j += rows) {
          rows = tile_rows(keys - j, batch);
          const int64_t i0 = max(q0, k0 + j - in.window) - q0, i1 = min(q1, k0 + j + rows + in.window) - q0;
          if (i0 >= i1) continue;
          gemm<V, true>(rows, dim, i1 - i0, {a + i0 * stride + j, stride}, {b + i0 * dim, G, dim, W}, sums + j * dim,
                        dim, query_blocks > 1);
        }
      }
      if (positions.exist) {
        position_grads.add(q0, queries, k0, keys, ds, stride, q, k, dq + (q0 - task.start) * dim, dk);
      }
    }
    const int64_t at = (k0 * in.heads + task.head) * in.head_dim, to = in.heads * in.head_dim;
    unpack<V>(dk, dim, keys, in.head_dim, 1.0f, static_cast<T*>(grads.grad_k) + at, to);
    unpack<V>(dv, dim, keys, in.head_dim, 1.0f, static_cast<T*>(grads.grad_v) + at, to);
  }
  unpack<V>(dq, dim, length, in.head_dim, static_cast<float>(in.scale),
            static_cast<T*>(grads.grad_q) + (task.start * in.heads + task.head) * in.head_dim, in.heads * in.head_dim);
}

}  // namespace
