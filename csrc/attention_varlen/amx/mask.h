// Query tiles of the AMX attention forward pass, and the mask tiles that their scores start from.
#pragma once

#include "attention_varlen/amx/tiles.h"

namespace glimodern {
namespace {

// 16 queries from `first` on, and the tiles of a block's keys that any of them sees: `tiles` tiles from key tile t0 on.
struct QueryTile {
  int64_t first, t0, tiles;
  int64_t full_begin, full_end;  // of these, the tiles that every query sees whole
  const char* q;
  int64_t stride;  // bytes
};

// Tiles of 0 for visible and -inf for masked scores, where not every query sees every key.
struct MaskTiles {
  struct Edges {  // of the keys that the first query sees; a window moves on by one key per query
    int64_t first, last, end;
    bool operator!=(const Edges& x) const { return first != x.first || last != x.last || end != x.end; }
  };
  static constexpr int64_t kMaxEnd = 2;  // tiles at either end of a window
  alignas(64) float tiles[2 * kMaxEnd * kTileFloats];
  Edges made[2 * kMaxEnd] = {};  // what each tile holds

  static int64_t index(int64_t t, int64_t full_begin, int64_t full_end) {
    return t < full_begin ? t : kMaxEnd + t - full_end;
  }

  // Makes the mask tiles of a query tile in the block of keys [k0, k1), unless they exist.
  void make(const AttentionInputs& in, const QueryTile& query, int64_t k0, int64_t k1) {
    for (int64_t t = 0; t < query.tiles; ++t) {
      if (t == query.full_begin && query.full_begin < query.full_end) t = query.full_end;
      if (t == query.tiles) return;
      const int64_t column = k0 + (query.t0 + t) * kTileRows;
      const Edges edges{max(query.first - in.window - column, -kTileRows),
                        min(query.first + in.window + 1 - column, kTileRows), min(k1 - column, kTileRows)};
      const int64_t n = index(t, query.full_begin, query.full_end);
      if (!(edges != made[n])) continue;
      made[n] = edges;
      float* row = tiles + n * kTileFloats;
      for (int64_t r = 0; r < kTileRows; ++r, row += 16) {
        const int64_t first = min(max(edges.first + r, 0), 16);
        const int64_t last = max(min(max(edges.last + r, 0), edges.end), first);
        const auto visible = static_cast<__mmask16>((1u << last) - (1u << first));
        V::store(row, _mm512_mask_mov_ps(V::set1(-__builtin_inff()), visible, V::zero()));
      }
    }
  }
};

}  // namespace
}  // namespace glimodern
