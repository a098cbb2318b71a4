// The tile products of the AMX attention forward pass, cut into single instructions that the softmax interleaves with
// its own work. Scores use tiles 6 and 7, sums of values tiles 0 to 3, both operands tiles 4 and 5.
#pragma once

#include "attention_varlen/amx/mask.h"

namespace glimodern {
namespace {

// S = Q K^T of a query tile, two key tiles t and t + 1 at a time. Tiles beyond `tiles` are skipped.
struct ScoreProduct {
  const char *q, *kt;
  int64_t stride, depth, tiles;
  float* s;
  const float* masks;
  int64_t full_begin, full_end;

  bool exists(int64_t t) const { return t < tiles; }
  bool full(int64_t t) const { return full_begin <= t && t < full_end; }
  const float* mask(int64_t t) const { return masks + MaskTiles::index(t, full_begin, full_end) * kTileFloats; }
  const char* keys(int64_t t, int64_t k) const { return kt + (t * depth + k) * kTileBytes; }

  void load_queries(int64_t t, int64_t k) const {
    if (exists(t)) _tile_loadd(4, q + k * 64, stride);
  }
  // The k-th depth step of key tile t. kStart: the first one.
  template <bool kStart>
  void multiply_first(int64_t t, int64_t k) const {
    if (!exists(t)) return;
    if (kStart && full(t)) _tile_zero(6);
    if (kStart && !full(t)) _tile_loadd(6, mask(t), 64);
    _tile_loadd(5, keys(t, k), 64);
    _tile_dpbf16ps(6, 4, 5);
  }
  // The same of key tile t + 1.
  template <bool kStart>
  void multiply_second(int64_t t, int64_t k) const {
    if (!exists(t + 1)) return;
    if (kStart && full(t + 1)) _tile_zero(7);
    if (kStart && !full(t + 1)) _tile_loadd(7, mask(t + 1), 64);
    _tile_loadd(5, keys(t + 1, k), 64);
    _tile_dpbf16ps(7, 4, 5);
  }
  void store_first(int64_t t) const {
    if (exists(t)) _tile_stored(6, s + t * kTileFloats, 64);
  }
  void store_second(int64_t t) const {
    if (exists(t + 1)) _tile_stored(7, s + (t + 1) * kTileFloats, 64);
  }
  // All depth steps of both key tiles.
  void multiply_pair(int64_t t) const {
    if (!exists(t)) return;
    load_queries(t, 0);
    multiply_first<true>(t, 0);
    multiply_second<true>(t, 0);
    for (int64_t k = 1; k < depth; ++k) {
      load_queries(t, k);
      multiply_first<false>(t, k);
      multiply_second<false>(t, k);
    }
    store_first(t);
    store_second(t);
  }
};

// P V of a query tile, 32 keys (probability tiles t and t + 1) at a time: the first up to four column tiles.
struct ValueProduct {
  const char *p, *v;
  int64_t panel, columns;  // panel: bytes

  void load_sums(const float* sums, bool accumulate) const {
    const char* c = reinterpret_cast<const char*>(sums);
    if (accumulate) {
      _tile_loadd(0, c, 64);
      _tile_loadd(1, c + kTileBytes, 64);
      if (columns == 2) return;
      _tile_loadd(2, c + 2 * kTileBytes, 64);
      _tile_loadd(3, c + 3 * kTileBytes, 64);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  void load_probabilities(int64_t t) const { _tile_loadd(4, p + t * kTileBytes, 64); }
  template <int N>
  void multiply_column(int64_t t) const {
    if (N > 1 && columns == 2) return;
    _tile_loadd(5, v + t * (kTileBytes / 2) + N * panel, 64);
    if constexpr (N == 0) _tile_dpbf16ps(0, 4, 5);
    if constexpr (N == 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (N == 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (N == 3) _tile_dpbf16ps(3, 4, 5);
  }
  void store_sums(float* sums) const {
    char* const c = reinterpret_cast<char*>(sums);
    _tile_stored(0, c, 64);
    _tile_stored(1, c + kTileBytes, 64);
    if (columns == 2) return;
    _tile_stored(2, c + 2 * kTileBytes, 64);
    _tile_stored(3, c + 3 * kTileBytes, 64);
  }
};

// A row of `columns` tiles of c; columns is even, since head_dim is padded to whole tiles of 32.
void multiply_row(int64_t columns, const char* a, int64_t a_stride, int64_t a_step, const char* b, int64_t b_step,
                  int64_t b_column, int64_t depth, float* c, bool accumulate) {
  for (; columns >= 4; columns -= 4, b += 4 * b_column, c += 4 * kTileFloats) {
    multiply_row_of_tiles<4>(a, a_stride, a_step, b, b_step, b_column, depth, c, accumulate);
  }
  if (columns == 2) multiply_row_of_tiles<2>(a, a_stride, a_step, b, b_step, b_column, depth, c, accumulate);
}

}  // namespace
}  // namespace glimodern
