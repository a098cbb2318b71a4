// Tile geometry of the AMX attention forward pass.
#pragma once

#include "simd/amx.h"

#include "simd/avx512_bf16.h"

#include "attention_varlen/blocks.h"

namespace glimodern {
namespace {

using V = Avx512Bf16;
using F = V::F;

constexpr int64_t kTileFloats = kTileBytes / 4;
constexpr int64_t kTileDepth = 32;  // bf16 elements in a row of a tile
// Keys in scratch at a time: with a window, all keys of a task unless the window is wide.
constexpr int64_t kBlockKeys = 384, kWindowBlockKeys = 1024;
constexpr int64_t kMaxHeadDim = 256;

struct TileCounts {
  int64_t depth;    // tiles along head_dim
  int64_t blocks;   // of keys
  int64_t keys;     // tiles of keys in a block
  int64_t queries;  // tiles of queries
  // Floats of a panel, 16 columns of v. It ends in lines of zeros, for an odd number of key tiles.
  int64_t value_panel() const { return (keys + 1) * kTileFloats / 2; }

  TileCounts(const AttentionInputs& in, int64_t total_keys, int64_t rows, bool windowed)
      : depth(ceil_div(in.head_dim, kTileDepth)),
        blocks(ceil_div(total_keys, windowed ? kWindowBlockKeys : kBlockKeys)),
        keys(ceil_div(ceil_div(total_keys, blocks > 0 ? blocks : 1), kTileRows)),
        queries(ceil_div(rows, kTileRows)) {}
};

}  // namespace
}  // namespace glimodern
