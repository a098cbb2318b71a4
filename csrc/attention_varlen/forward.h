// The attention forward pass, for every vector class V (csrc/simd/) and storage type T (float, Bf16).
//
// A register tile of queries at a time against a block of keys: S = Q K^T with keys as lanes, softmax, P V with
// elements of the head as lanes. If a query's keys do not fit scratch at once, the running maximum and the running sum
// of its softmax are carried from block to block (https://arxiv.org/abs/2205.14135).
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge copies. For the same reason nothing here instantiates code of the standard library.
#pragma once

#include "attention_varlen/blocks.h"
#include "attention_varlen/pack.h"
#include "attention_varlen/positions.h"
#include "attention_varlen/softmax.h"
#include "simd/rows.h"

namespace {

template <class V>
size_t forward_scratch(const AttentionInputs& in, int64_t max_seqlen) {
  const int64_t dim = padded_dim<V>(in), queries = min(max_seqlen, glimodern::kTaskQueries);
  const int64_t keys =
      round_up(min(max_seqlen, in.window < max_seqlen ? kWindowKeys : kForwardKeys), panel_columns<V>());
  constexpr int64_t batch = kRowTiles * V::gemm_rows;
  return static_cast<size_t>(queries * (2 * dim + 2) + 2 * keys * dim + batch * (keys + kScorePadding) +
                             PositionScores<V>::scratch(in, batch, keys) + 16 * kMaxPieces);
}

// P: the vector class of the GEMMs. If it differs from V, it multiplies pairs of bf16 elements: q and k as they are
// stored, probabilities rounded to bf16.
template <class V, class T, class P = V>
void attention_forward(const AttentionInputs& in, const AttentionTask& task, T* out, float* lse, float* scratch) {
  constexpr int64_t W = V::width, G = panel_columns<V>();
  constexpr bool kPairs = !kSame<V, P>;
  const int64_t dim = padded_dim<V>(in), queries = task.q1 - task.q0;
  const int64_t first_key = max(task.start, task.q0 - in.window), last_key = min(task.end, task.q1 + in.window);
  const int64_t keys = last_key - first_key;
  const bool windowed = in.window < task.end - task.start;
  const int64_t blocks = ceil_div(keys, windowed ? kWindowKeys : kForwardKeys);
  const int batch = V::gemm_rows * (windowed ? 1 : kRowTiles);  // queries of a pass over the keys
  const int64_t max_block = round_up(ceil_div(keys, blocks), G), stride = max_block + kScorePadding;
  ScratchPieces pieces{scratch};
  float* q = pieces.take(queries * dim);
  float* sums = pieces.take(queries * dim);  // of P V
  float* running_max = pieces.take(queries);
  float* running_sum = pieces.take(queries);
  float* kt = pieces.take(max_block * dim);
  float* v = pieces.take(max_block * dim);
  float* s = pieces.take(batch * stride);
  const PositionScores<V, P> positions(in, task.head, batch, max_block, pieces);

  const AttentionRows results{out, in.heads * in.head_dim, in.head_dim};
  const AttentionRows* const operands[] = {&in.q, &in.k, &in.v};
  int64_t next_prefetch = task.q0;
  const auto prefetch_token = [&] {
    if (next_prefetch == task.q1) return;
    prefetch<T, true>(results, next_prefetch, task.head, in.head_dim);
    for (const AttentionRows* rows : operands) {
      if (task.head + 1 < in.heads) prefetch<T, false>(*rows, next_prefetch, task.head + 1, in.head_dim);
    }
    ++next_prefetch;
  };
  const T* first_q = row_of<T>(in.q, task.q0, task.head);
  const int64_t depth = kPairs ? in.head_dim / 2 : in.head_dim;  // of Q K^T
  AOperand q_operand{q, dim};
  if constexpr (kPairs) {
    q_operand = {reinterpret_cast<const float*>(first_q), in.q.row / 2};
  } else {
    pack<V>(first_q, in.q.row, queries, in.head_dim, dim, static_cast<float>(in.scale), q);
  }
  for (int64_t i = 0; i < queries; ++i) {
    running_max[i] = -__builtin_inff();
    running_sum[i] = 0.0f;
  }
  if (blocks > 1) clear<V>(sums, queries * dim);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = first_key + keys * block / blocks, k1 = first_key + keys * (block + 1) / blocks;
    const T *first_k = row_of<T>(in.k, k0, task.head), *first_v = row_of<T>(in.v, k0, task.head);
    if constexpr (kPairs) {
      pack_transposed<V>(reinterpret_cast<const float*>(first_k), in.k.row / 2, k1 - k0, depth, kt);
      pack_pairs<V>(first_v, in.v.row, k1 - k0, in.head_dim, dim, v);
    } else {
      pack_transposed<V>(first_k, in.k.row, k1 - k0, in.head_dim, kt);
      pack<V>(first_v, in.v.row, k1 - k0, in.head_dim, dim, 1.0f, v);
    }
    for (int64_t i = 0, rows = 0; i < queries; i += rows) {
      rows = tile_rows(queries - i, batch);
      const KeyRange visible = visible_keys(in, task.q0 + i, task.q0 + i + rows, k0, k1);
      if (visible.first >= visible.last) continue;
      const int64_t c0 = visible.first / G * G, c1 = round_up(visible.last, W);
      gemm<P, false>(rows, c1 - c0, depth, {q_operand.data + i * q_operand.stride, q_operand.stride},
                     {kt + c0 * depth, G * depth, G, W}, s + c0, stride, false, prefetch_token);
      if (positions.exist) {
        positions.add(task.q0 + i, rows, k0, c0, c1, {q_operand.data + i * q_operand.stride, q_operand.stride}, kt, s,
                      stride);
      } else if (kPairs) {
        for (int64_t r = 0; r < rows; ++r) scale_row<V>(static_cast<float>(in.scale), c0, c1, s + r * stride);
      }
      for (int64_t r = 0; r < rows; ++r) {
        mask_row<V>(visible_keys(in, task.q0 + i + r, task.q0 + i + r + 1, k0, k1), c0, c1, s + r * stride);
      }
      for (int64_t r = 0, n = 0; r < rows; r += n) {
        constexpr int R = 4;
        n = rows - r < R ? 1 : R;
        float *row = s + r * stride, *max_now = running_max + i + r, max_before[R], row_sum[R];
        for (int m = 0; m < n; ++m) max_before[m] = max_now[m];
        if (n == R) {
          softmax_rows<V, R>(row, stride, c0, c1, max_now, row_sum);
        } else {
          softmax_rows<V, 1>(row, stride, c0, c1, max_now, row_sum);
        }
        for (int m = 0; m < n; ++m) {
          const int64_t query = i + r + m;
          float* p = row + m * stride;
          if (in.dropout.enabled) {
            const ProbabilityDropout<V> dropout(in, task, task.q0 + query, k0 - task.start);
            for (int64_t j = c0; j < c1; j += W) V::store(p + j, dropout.apply(j, V::load(p + j)));
          }
          if constexpr (kPairs) {  // bf16 probabilities from the row's beginning on
            for (int64_t j = c0; j < c1; j += W) V::storeu(reinterpret_cast<Bf16*>(p) + j, V::load(p + j));
          }
          if (max_before[m] != max_now[m] && running_sum[query] != 0.0f) {
            const float decay = __builtin_exp2f(to_log2(max_before[m]) - to_log2(max_now[m]));
            running_sum[query] *= decay;
            scale_row<V>(decay, 0, dim, sums + query * dim);
          }
          running_sum[query] += row_sum[m];
        }
      }
      // Of P V: the visible keys, or pairs of keys.
      const int64_t from = kPairs ? c0 / 2 : visible.first, to = kPairs ? (visible.last + 1) / 2 : visible.last;
      gemm<P, false>(rows, dim, to - from, {s + from, stride}, {v + from * dim, G, dim, W}, sums + i * dim, dim,
                     blocks > 1, prefetch_token);
    }
  }
  const int64_t tokens = in.tokens();
  const float keep_scale = in.dropout.enabled ? static_cast<float>(in.dropout.keep_scale) : 1.0f;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t token = task.q0 + i;
    if (lse != nullptr) {
      lse[task.head * tokens + token] =
          running_max[i] + (__builtin_logf(running_sum[i]) + log2_rounding(running_max[i]));
    }
    unpack<V>(sums + i * dim, dim, 1, in.head_dim, keep_scale / running_sum[i],
              out + (token * in.heads + task.head) * in.head_dim, 0);
  }
}

}  // namespace
