// Block sizes of the attention kernels for vector classes V (csrc/simd/), and the scratch that they need.
#pragma once

#include "attention_varlen/kernels.h"
#include "integer_math.h"
#include "simd/gemm.h"

namespace {

using glimodern::AttentionInputs;

// Forward, keys in scratch at a time: few, so that a GEMM finds its operands in L1; with a window, all keys of a task.
constexpr int64_t kForwardKeys = 128, kWindowKeys = 512;
// Register tiles of queries that share a pass over the keys. With a window only one: a pass covers all keys that any of
// its queries sees.
constexpr int kRowTiles = 5;
// Backward, keys and queries in scratch at a time: 290 KB with head_dim 64.
constexpr int64_t kBackwardKeys = 128, kBackwardQueries = 64;
constexpr int64_t kScorePadding = 16;  // floats between rows of scores, so that they do not map to the same cache sets
constexpr int64_t kMaxPieces = 12;     // of scratch, each rounded up to 16 floats

template <class V>
int64_t padded_dim(const AttentionInputs& in) {
  return round_up(in.head_dim, V::width);
}

template <class V>
size_t forward_scratch(const AttentionInputs& in, int64_t max_seqlen) {
  const int64_t dim = padded_dim<V>(in), queries = min(max_seqlen, glimodern::kTaskQueries);
  const int64_t keys =
      round_up(min(max_seqlen, in.window < max_seqlen ? kWindowKeys : kForwardKeys), panel_columns<V>());
  return static_cast<size_t>(queries * (2 * dim + 2) + 2 * keys * dim +
                             kRowTiles * V::gemm_rows * (keys + kScorePadding) + 16 * kMaxPieces);
}

template <class V>
size_t backward_scratch(const AttentionInputs& in, int64_t max_seqlen) {
  const int64_t dim = padded_dim<V>(in), queries = min(max_seqlen, kBackwardQueries);
  const int64_t keys = round_up(min(max_seqlen, kBackwardKeys), panel_columns<V>());
  return static_cast<size_t>(max_seqlen * dim + queries * (2 * dim + 1) + 5 * keys * dim +
                             2 * queries * (keys + kScorePadding) + 16 * kMaxPieces);
}

// Hands out 64-byte aligned pieces of a thread's scratch.
struct ScratchPieces {
  float* next;
  float* take(int64_t floats) {
    float* piece = next;
    next += round_up(floats, 16);
    return piece;
  }
};

}  // namespace
