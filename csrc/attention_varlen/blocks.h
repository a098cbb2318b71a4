// Block sizes of the attention kernels for vector classes V (csrc/simd/), and the pieces of a thread's scratch.
#pragma once

#include "attention_varlen/kernels.h"
#include "integer_math.h"
#include "simd/gemm.h"

namespace {

using glimodern::AttentionInputs;

template <class V, class P>
constexpr bool kSame = false;
template <class V>
constexpr bool kSame<V, V> = true;

// Forward, keys in scratch at a time: few, so that a GEMM finds its operands in L1; with a window, all keys of a task.
constexpr int64_t kForwardKeys = 128, kWindowKeys = 512;
// Register tiles of queries that share a pass over the keys. With a window only one: a pass covers all keys that any of
// its queries sees.
constexpr int kRowTiles = 5;
// Backward, keys and queries in scratch at a time: 290 KB with head_dim 64.
constexpr int64_t kBackwardKeys = 128, kBackwardQueries = 64;
constexpr int64_t kScorePadding = 16;  // floats between rows of scores, so that they do not map to the same cache sets
constexpr int64_t kMaxPieces = 24;     // of scratch, each rounded up to 16 floats

template <class V>
int64_t padded_dim(const AttentionInputs& in) {
  return round_up(in.head_dim, V::width);
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
