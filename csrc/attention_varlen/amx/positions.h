// The terms of attention scores that depend on relative distance, on AMX tiles: see attention_varlen/positions.h.
//
// 16 queries and 16 keys have 31 distances, two tiles of vectors. The queries times the vectors (c2p) are rows that a
// load from the right place shifts; the vectors times the keys (p2c) are columns that blends shift.
#pragma once

#include "attention_varlen/amx/mask.h"
#include "attention_varlen/amx/pack.h"
#include "attention_varlen/positions.h"

namespace glimodern {
namespace {

// One head's tables by distance, in floats: index origin - d for c2p and bias, origin + d for p2c.
struct AmxPositionLayout {
  int64_t origin, count, depth;
  // c2p: B tiles of 16 distances [count / 16][depth]; p2c: rows of depth tiles [count]; bias [count], divided by scale;
  // far: a B tile and an A tile per depth step, whose columns and rows 0 and 1 are the vectors of distances +-reach.
  int64_t c2p, p2c, bias, far_c2p, far_p2c, floats;

  explicit AmxPositionLayout(const AttentionInputs& in) : depth(ceil_div(in.head_dim, kTileDepth)) {
    // The first distance of a pair of tiles is a multiple of 16 if its queries and keys are. Up to two tiles more are
    // read on either side.
    origin = round_up(in.prepared.half, kTileRows) + 3 * kTileRows - 1;
    count = round_up(2 * origin + 1, kTileRows) + kTileRows;
    c2p = 0;
    p2c = c2p + count * depth * 16;
    bias = p2c + count * depth * 16;
    far_c2p = bias + count;
    far_p2c = far_c2p + depth * kTileFloats;
    floats = far_p2c + depth * kTileFloats;
  }
};

// The largest distance that the tables hold: beyond `reach` lie only pairs of tiles that begin before it.
inline int64_t amx_position_half(const AttentionInputs& in, int64_t max_seqlen) {
  return min(max_seqlen - 1, in.positions.reach + 2 * kTileRows);
}

inline void prepare_amx_positions(const AttentionInputs& in, int64_t head, float* tables) {
  const AmxPositionLayout layout(in);
  const Positions& positions = in.positions;
  const int64_t row_floats = layout.depth * 16;
  // The vector of a distance as whole tile rows, zero-padded; zeros without a table.
  const auto copy = [&](const void* table, int64_t distance, float* to) {
    const Bf16* from = static_cast<const Bf16*>(table);
    if (table != nullptr) from += (table_row(in, distance) * in.heads + head) * in.head_dim;
    for (int64_t k = 0; k < layout.depth; ++k) {
      const int64_t elements = table == nullptr ? 0 : in.head_dim - k * kTileDepth;
      _mm512_store_si512(to + k * 16, load_tile_row(from + (table == nullptr ? 0 : k * kTileDepth), elements));
    }
  };
  alignas(64) float rows[kTileRows * kMaxHeadDim / 2];
  const auto transpose = [&](float* to) {  // `rows` -> B tiles
    for (int64_t k = 0; k < layout.depth; ++k) {
      pack_key_tile<true>(reinterpret_cast<const Bf16*>(rows + k * 16), 2 * row_floats, kTileRows, kTileDepth,
                          reinterpret_cast<char*>(to + k * kTileFloats));
    }
  };
  for (int64_t n = 0; n < layout.count; ++n) {
    copy(positions.c2p, layout.origin - n, rows + n % kTileRows * row_floats);
    if (n % kTileRows == kTileRows - 1) transpose(tables + layout.c2p + n / kTileRows * row_floats * kTileRows);
    copy(positions.p2c, n - layout.origin, tables + layout.p2c + n * row_floats);
    float score = 0.0f;
    if (positions.bias != nullptr) {
      score = static_cast<const float*>(positions.bias)[table_row(in, layout.origin - n) * in.heads + head];
    }
    tables[layout.bias + n] = score / static_cast<float>(in.scale);
  }
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t distance = r == 0 ? positions.reach : -positions.reach;
    copy(r < 2 ? positions.c2p : nullptr, distance, rows + r * row_floats);
    copy(r < 2 ? positions.p2c : nullptr, distance, tables + layout.far_p2c + r * row_floats);
  }
  transpose(tables + layout.far_c2p);
}

// Adds the terms to tiles of raw scores, of one head.
class AmxPositions {
 public:
  const bool exist;

  // Floats of scratch, without the rounding of pieces, for blocks of `keys` tiles and `queries` tiles of queries.
  static int64_t scratch(const AttentionInputs& in, int64_t keys, int64_t queries) {
    if (in.positions.rows == nullptr) return 0;
    return kTileRows * stride_of(keys) + 4 * kTileFloats + 2 * keys * kTileRows + queries * kTileFloats;
  }

  AmxPositions(const AttentionInputs& in, int64_t head, int64_t keys, int64_t queries, ScratchPieces& pieces)
      : exist(in.positions.rows != nullptr), layout_(in), reach_(in.positions.reach), keys_(keys) {
    if (!exist) return;
    const float* tables = in.prepared.tables + head * in.prepared.head_stride;
    has_c2p_ = in.positions.c2p != nullptr, has_p2c_ = in.positions.p2c != nullptr;
    c2p_ = tables + layout_.c2p, p2c_ = tables + layout_.p2c, bias_ = tables + layout_.bias;
    far_c2p_ = tables + layout_.far_c2p, far_p2c_ = tables + layout_.far_p2c;
    shifted_ = pieces.take(kTileRows * stride_of(keys));
    columns_ = pieces.take(4 * kTileFloats);
    far_keys_ = pieces.take(2 * keys * kTileRows);
    far_queries_ = pieces.take(queries * kTileFloats);
  }

  // For query tile n of the task: what its queries add to the scores of far keys.
  void add_queries(int64_t n, const char* q, int64_t stride) const {
    multiply(q, stride, far_c2p_, far_queries_ + n * kTileFloats);
  }

  // For a block of `tiles` tiles of packed keys: what they add to the scores of far queries.
  void add_keys(const char* kt, int64_t tiles) const {
    for (int64_t t = 0; t < tiles; ++t) {
      GLIMODERN_TILE_BARRIER;
      multiply(reinterpret_cast<const char*>(far_p2c_), layout_.depth * 64,
               reinterpret_cast<const float*>(kt + t * layout_.depth * kTileBytes), columns_);
      GLIMODERN_TILE_BARRIER;
      for (int64_t side = 0; side < 2; ++side) {
        V::store(far_keys_ + (side * keys_ + t) * kTileRows, V::load(columns_ + side * kTileRows));
      }
    }
  }

  // s: the scores of query tile n of the task with the tiles of keys that it sees. block: the first key of the block.
  void add(const QueryTile& query, int64_t n, int64_t block, const char* kt, const MaskTiles& masks, float* s) const {
    const int64_t key = block + query.t0 * kTileRows;
    const int64_t near_begin = clamp(floor_div(query.first - (kTileRows - 1) - reach_ - key) + 1, query.tiles);
    const int64_t near_end =
        max(near_begin, clamp(floor_div(query.first + 2 * (kTileRows - 1) + reach_ - key), query.tiles));
    for (int64_t t = 0; t < near_begin; ++t) add_far(0, n, query.t0 + t, s + t * kTileFloats);
    for (int64_t t = near_end; t < query.tiles; ++t) add_far(1, n, query.t0 + t, s + t * kTileFloats);
    if (near_begin < near_end) {
      // Index of the last query and the first near key; the pair of tiles with the next key tile begins 16 further on.
      const int64_t first = layout_.origin - (query.first + kTileRows - 1) + key + near_begin * kTileRows;
      const int64_t offset = first % kTileRows, stride = stride_of(keys_);
      GLIMODERN_TILE_BARRIER;
      if (has_c2p_) {
        const int64_t tiles = near_end - near_begin + 1 + (offset > 0);
        multiply_queries(query, c2p_ + first / kTileRows * layout_.depth * kTileFloats, tiles, stride);
      }
      const auto distances = [&](int64_t t) {  // of p2c: the first query, the last key of a tile
        return p2c_ + (layout_.origin + query.first - (key + t * kTileRows + kTileRows - 1)) * layout_.depth * 16;
      };
      const auto keys = [&](int64_t t) {
        return reinterpret_cast<const float*>(kt + (query.t0 + t) * layout_.depth * kTileBytes);
      };
      if (has_p2c_) multiply_keys(distances(near_begin), keys(near_begin), columns_);
      for (int64_t t = near_begin; t < near_end; ++t) {
        float* const now = columns_ + (t - near_begin) % 2 * 2 * kTileFloats;
        float* const next = columns_ + (t + 1 - near_begin) % 2 * 2 * kTileFloats;
        if (has_p2c_ && t + 1 < near_end) multiply_keys(distances(t + 1), keys(t + 1), next);
        GLIMODERN_TILE_BARRIER;
        const int64_t place = (t - near_begin) * kTileRows + kTileRows - 1;  // of row 0; the next rows lie one before
        add_near(shifted_ + offset + place, stride, bias_ + first + place, now, s + t * kTileFloats);
        GLIMODERN_TILE_BARRIER;
      }
    }
    for (int64_t t = 0; t < query.tiles; ++t) {
      if (t == query.full_begin && query.full_begin < query.full_end) t = query.full_end;
      if (t == query.tiles) return;
      const float* mask = masks.tiles + MaskTiles::index(t, query.full_begin, query.full_end) * kTileFloats;
      for (int64_t r = 0; r < kTileFloats; r += 16) {  // anew: a term may be NaN where no score is
        const F hidden = V::load(mask + r), score = V::load(s + t * kTileFloats + r);
        V::store(s + t * kTileFloats + r, V::where_negative(hidden, hidden, score));
      }
    }
  }

 private:
  const AmxPositionLayout layout_;
  const int64_t reach_, keys_;
  bool has_c2p_ = false, has_p2c_ = false;
  const float *c2p_ = nullptr, *p2c_ = nullptr, *bias_ = nullptr, *far_c2p_ = nullptr, *far_p2c_ = nullptr;
  float *shifted_ = nullptr, *columns_ = nullptr, *far_keys_ = nullptr, *far_queries_ = nullptr;

  static int64_t floor_div(int64_t x) { return x >> 4; }  // by kTileRows, negative x too
  static int64_t clamp(int64_t x, int64_t end) { return max(0, min(x, end)); }
  // Of the rows of shifted_: an odd number of lines.
  static int64_t stride_of(int64_t keys) { return ((keys + 2) | 1) * kTileRows; }

  // c: a tile, 16 rows of A times a tile of B, over all depth steps.
  void multiply(const char* a, int64_t a_stride, const float* b, float* c) const {
    _tile_zero(0);
    for (int64_t k = 0; k < layout_.depth; ++k) {
      _tile_loadd(4, a + k * 64, a_stride);
      _tile_loadd(5, b + k * kTileFloats, 64);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, c, 64);
  }

  // shifted_ <- a query tile times `tiles` tiles of distances.
  void multiply_queries(const QueryTile& query, const float* table, int64_t tiles, int64_t stride) const {
    const int64_t step = layout_.depth * kTileFloats;
    for (int64_t t = 0; t < tiles; t += 2, table += 2 * step) {
      const bool two = t + 1 < tiles;
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t k = 0; k < layout_.depth; ++k) {
        _tile_loadd(4, query.q + k * 64, query.stride);
        _tile_loadd(5, table + k * kTileFloats, 64);
        _tile_dpbf16ps(0, 4, 5);
        if (!two) continue;
        _tile_loadd(6, table + step + k * kTileFloats, 64);
        _tile_dpbf16ps(1, 4, 6);
      }
      _tile_stored(0, shifted_ + t * kTileRows, stride * 4);
      if (two) _tile_stored(1, shifted_ + (t + 1) * kTileRows, stride * 4);
    }
  }

  // c [32 distances, 16 keys] <- two tiles of distances times a key tile.
  void multiply_keys(const float* table, const float* kt, float* c) const {
    const int64_t stride = layout_.depth * 64;
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < layout_.depth; ++k) {
      _tile_loadd(7, kt + k * kTileFloats, 64);
      _tile_loadd(4, table + k * 16, stride);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, table + kTileRows * layout_.depth * 16 + k * 16, stride);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, c, 64);
    _tile_stored(3, c + kTileFloats, 64);
  }

  void add_near(const float* shifted, int64_t stride, const float* bias, const float* columns, float* s) const {
    F z[2 * kTileRows - 1];
#pragma GCC unroll 32
    for (int r = 0; r < 2 * kTileRows - 1; ++r) z[r] = has_p2c_ ? V::load(columns + r * 16) : V::zero();
    if (has_p2c_) shift_columns<V>(z);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      F score = V::add(V::load(s + r * 16), V::add(z[r], V::loadu(bias - r)));
      if (has_c2p_) score = V::add(score, V::loadu(shifted + r * stride - r));
      V::store(s + r * 16, score);
    }
  }

  // side 0: keys far before the queries, 1: far after them.
  void add_far(int64_t side, int64_t n, int64_t tile, float* s) const {
    const F bias = V::set1(bias_[layout_.origin + (side == 0 ? -reach_ : reach_)]);
    const F keys = V::add(bias, V::load(far_keys_ + (side * keys_ + tile) * kTileRows));
    const float* query = far_queries_ + n * kTileFloats + side;
    for (int64_t r = 0; r < kTileRows; ++r) {
      V::store(s + r * 16, V::add(V::load(s + r * 16), V::add(keys, V::set1(query[r * 16]))));
    }
  }
};

}  // namespace
}  // namespace glimodern
