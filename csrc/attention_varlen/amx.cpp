// The attention forward pass in bf16 on AMX tiles: 16 queries against tiles of 16 keys.
//
// Keys and values are packed as B tiles (amx/pack.h); q is read in place. A tile of scores is stored, its softmax is
// computed in vectors of 16 keys (amx/softmax.h), and the rounded probabilities are the A tiles of P V, 32 keys each.
#include "attention_varlen/amx/mask.h"
#include "attention_varlen/amx/pack.h"
#include "attention_varlen/amx/positions.h"
#include "attention_varlen/amx/products.h"
#include "attention_varlen/amx/softmax.h"
#include "attention_varlen/amx/tiles.h"
#include "attention_varlen/pack.h"
#include "attention_varlen/softmax.h"
#include "simd/rows.h"

namespace glimodern {
namespace {

struct AmxForward {
  const AttentionInputs& in;
  const AttentionTask& task;
  Bf16* out;
  float* lse;
  int64_t rows, dim, first_key, last_key;
  TileCounts count;
  int64_t depth, columns, panel;  // columns: tiles of the result; panel: of packed values
  float scale;                    // of scores, to powers of two
  char* kt;
  float *v, *s[2], *sums, *running_sum, *running_max;  // running_max: scaled
  char* query_copies;
  const Bf16* q;
  int64_t in_place, next_prefetch;  // in_place: query tiles that are read where they lie
  ScratchPieces pieces;
  const AmxPositions positions;

  AmxForward(const AttentionInputs& inputs, const AttentionTask& whole, Bf16* result, float* logsumexp, float* scratch)
      : in(inputs),
        task(whole),
        out(result),
        lse(logsumexp),
        rows(task.q1 - task.q0),
        dim(in.head_dim),
        first_key(max(task.start, task.q0 - in.window)),
        last_key(min(task.end, task.q1 + in.window)),
        count(in, last_key - first_key, rows, in.window < task.end - task.start),
        depth(count.depth),
        columns(2 * depth),
        panel(count.value_panel()),
        scale(static_cast<float>(in.scale * 1.4426950408889634)),  // log2(e)
        q(row_of<Bf16>(in.q, task.q0, task.head)),
        in_place(dim % kTileDepth == 0 ? min(count.queries, (in.tokens() - task.q0) / kTileRows) : 0),
        next_prefetch(task.q0),
        pieces{scratch},
        positions(in, task.head, count.keys, count.queries, pieces) {
    kt = reinterpret_cast<char*>(pieces.take(count.keys * depth * kTileFloats));
    v = pieces.take(columns * panel);
    for (float*& piece : s) piece = pieces.take((count.keys + 1) * kTileFloats);
    sums = pieces.take((count.blocks > 1 ? count.queries : 1) * columns * kTileFloats);
    running_sum = pieces.take(count.queries * kTileFloats);
    running_max = pieces.take(count.queries * kTileRows);
    query_copies = reinterpret_cast<char*>(pieces.take(count.queries * depth * kTileFloats));
  }

  // The accumulators of query tile i; with a single block of keys, query tiles share them.
  float* sums_of(int64_t i) const { return count.blocks > 1 ? sums + i * columns * kTileFloats : sums; }

  bool has_far_keys() const { return positions.exist && task.end - task.start > in.positions.reach; }

  // Rows of query tile i, and their distance in bytes.
  const char* query_data(int64_t i) const {
    return i < in_place ? reinterpret_cast<const char*>(q + i * kTileRows * in.q.row)
                        : query_copies + (i - in_place) * depth * kTileBytes;
  }
  int64_t query_stride(int64_t i) const { return i < in_place ? in.q.row * 2 : depth * 64; }

  // The first query tile from i on that sees keys of the block [k0, k1). Sets i to its index, or to count.queries.
  QueryTile next_query_tile(int64_t& i, int64_t k0, int64_t k1) const {
    for (; i < count.queries; ++i) {
      const int64_t first = task.q0 + i * kTileRows, last = min(task.q1, first + kTileRows);
      const KeyRange any = visible_keys(in, first, last, k0, k1);
      if (any.first >= any.last) continue;
      const int64_t t0 = any.first / kTileRows;
      // Keys that all queries see: from the last query's first key to the first query's last key.
      const int64_t all_first = visible_keys(in, last - 1, last, k0, k1).first;
      const int64_t all_last = visible_keys(in, first, first + 1, k0, k1).last;
      return {first,
              t0,
              ceil_div(any.last, kTileRows) - t0,
              ceil_div(all_first, kTileRows) - t0,
              max(all_last, 0) / kTileRows - t0,
              query_data(i),
              query_stride(i)};
    }
    return {0, 0, 0, 0, 0, nullptr, 0};
  }

  // Raises query tile i's running maximum where the scores exceed it by more than kHeadroom, and rescales what was
  // summed before. Then scale * score - shift <= kHeadroom, up to rounding: either the maximum is raised to the row's,
  // or it lies at most kHeadroom below. shift <- the maximum, or 0 where it is -inf.
  void update_max(int64_t i, const float* scores, int64_t tiles, bool rescale, float* shift) const {
    float* const tile_max = running_max + i * kTileRows;
    const F before = V::load(tile_max), now = V::mul(V::set1(scale), row_max(scores, tiles));
    const __mmask16 raised = _mm512_cmp_ps_mask(now, V::add(before, V::set1(kHeadroom)), _CMP_GT_OQ);
    const F after = _mm512_mask_mov_ps(before, raised, now);
    V::store(tile_max, after);
    V::store(shift, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(after, V::set1(-__builtin_inff()), _CMP_NEQ_UQ), after));
    if (raised == 0 || !rescale) return;
    alignas(64) float decay[kTileRows];
    F change = V::sub(before, after);
    exp2_tile<1>(&change);
    V::store(decay, change);
    for (int64_t r = 0; r < kTileRows; ++r) {
      if ((raised >> r & 1) == 0) continue;
      scale_row<V>(decay[r], 0, 16, running_sum + i * kTileFloats + r * 16);
      for (int64_t c = 0; c < columns; ++c) scale_row<V>(decay[r], 0, 16, sums_of(i) + c * kTileFloats + r * 16);
    }
  }

  // Divides query tile i's sums by its running sums; stores the result and lse.
  void epilogue(int64_t i) const {
    const int64_t first = task.q0 + i * kTileRows, queries = min(task.q1 - first, kTileRows);
    F lanes[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) lanes[r] = V::load(running_sum + i * kTileFloats + r * 16);
    const F sum = reduce_rows(lanes, [](F x, F y) { return V::add(x, y); });
    alignas(64) float factor[kTileRows], row_sum[kTileRows];
    V::store(factor, V::div(V::set1(in.dropout.enabled ? static_cast<float>(in.dropout.keep_scale) : 1.0f), sum));
    if (lse != nullptr) {
      V::store(row_sum, sum);
      for (int64_t r = 0; r < queries; ++r) {
        const double shift = running_max[i * kTileRows + r] * (in.scale / static_cast<double>(scale));
        lse[task.head * in.tokens() + first + r] = static_cast<float>(shift + __builtin_logf(row_sum[r]));
      }
    }
    store_rows(sums_of(i), factor, queries, depth, dim, out + (first * in.heads + task.head) * dim, in.heads * dim);
  }

  void prefetch_until(int64_t token) {
    const AttentionRows results{out, in.heads * dim, dim};
    for (; next_prefetch < min(token, task.q1); ++next_prefetch) {
      prefetch<Bf16, true>(results, next_prefetch, task.head, dim);
      if (task.head + 1 == in.heads) continue;
      prefetch<Bf16, false>(in.q, next_prefetch, task.head + 1, dim);
      prefetch<Bf16, false>(in.k, next_prefetch, task.head + 1, dim);
      prefetch<Bf16, false>(in.v, next_prefetch, task.head + 1, dim);
    }
  }

  // All query tiles against the block of keys [k0, k1). Two buffers of scores: while the softmax of one query tile
  // runs, the scores of the next are computed.
  template <bool kDropout>
  void block(int64_t k0, int64_t k1) {
    pack_keys(row_of<Bf16>(in.k, k0, task.head), in.k.row, k1 - k0, dim, depth, kt, s[0]);
    pack_values(row_of<Bf16>(in.v, k0, task.head), in.v.row, k1 - k0, (ceil_div(k1 - k0, kTileRows) + 1) * 8, dim,
                depth, panel, v, s[0]);
    if (has_far_keys()) positions.add_keys(kt, ceil_div(k1 - k0, kTileRows));
    MaskTiles masks;
    int64_t i = 0;
    int side = 0;
    const auto score_product = [&](const QueryTile& query, float* to) {
      masks.make(in, query, k0, k1);
      return ScoreProduct{query.q,       kt + query.t0 * depth * kTileBytes,
                          query.stride,  depth,
                          query.tiles,   to,
                          masks.tiles,   query.full_begin,
                          query.full_end};
    };
    QueryTile query = next_query_tile(i, k0, k1);
    const ScoreProduct first = score_product(query, s[0]);
    GLIMODERN_TILE_BARRIER;
    for (int64_t t = 0; t < query.tiles; t += 2) first.multiply_pair(t);
    GLIMODERN_TILE_BARRIER;
    while (i < count.queries) {
      float* const now = s[side];
      side ^= 1;
      int64_t j = i + 1;
      const QueryTile next = next_query_tile(j, k0, k1);
      if (positions.exist) positions.add(query, i, k0, kt, masks, now);
      alignas(64) float shift[kTileRows];
      update_max(i, now, query.tiles, k0 > first_key, shift);
      uint32_t counters[kTileRows];
      for (int64_t r = 0; r < kTileRows && kDropout; ++r) {
        const uint32_t key =
            dropout_key(static_cast<uint64_t>((query.first + r) * in.heads + task.head), in.dropout.seed);
        counters[r] = key + static_cast<uint32_t>(k0 + query.t0 * kTileRows - task.start) * kGolden;
      }
      const char* query_values = reinterpret_cast<const char*>(v + query.t0 * (kTileFloats / 2));
      const ValueProduct values{reinterpret_cast<const char*>(now), query_values, panel * 4, columns};
      float* const query_sums = sums_of(i);
      const ScoreProduct scores = score_product(next, s[side]);
      GLIMODERN_TILE_BARRIER;
      values.load_sums(query_sums, k0 > first_key);
      softmax_tiles<kDropout>(now, query.tiles, {scale, shift, counters, in.dropout.threshold},
                              running_sum + i * kTileFloats, scores, values,
                              [&](int64_t t) { prefetch_until(query.first + kTileRows * (t + 2) / query.tiles); });
      values.store_sums(query_sums);
      for (int64_t c = 4; c < columns; c += 4) {
        multiply_row(min(columns - c, 4), reinterpret_cast<const char*>(now), 64, 2 * kTileBytes,
                     query_values + c * panel * 4, kTileBytes, panel * 4, ceil_div(query.tiles, 2),
                     query_sums + c * kTileFloats, k0 > first_key);
      }
      GLIMODERN_TILE_BARRIER;
      if (count.blocks == 1) epilogue(i);
      query = next;
      i = j;
    }
  }

  void run() {
    pack_queries(q + in_place * kTileRows * in.q.row, in.q.row, rows - in_place * kTileRows,
                 (count.queries - in_place) * kTileRows, dim, depth, query_copies);
    for (int64_t i = 0; i < count.queries; ++i) V::store(running_max + i * kTileRows, V::set1(-__builtin_inff()));
    clear<V>(running_sum, count.queries * kTileFloats);
    if (count.blocks > 1) clear<V>(sums, count.queries * columns * kTileFloats);
    const TileConfig tiles;
    for (int64_t i = 0; i < count.queries && has_far_keys(); ++i) {
      positions.add_queries(i, query_data(i), query_stride(i));
    }
    const auto run_block = in.dropout.enabled ? &AmxForward::block<true> : &AmxForward::block<false>;
    for (int64_t k0 = first_key; k0 < last_key; k0 += count.keys * kTileRows) {
      (this->*run_block)(k0, min(last_key, k0 + count.keys * kTileRows));
    }
    for (int64_t i = 0; i < count.queries && count.blocks > 1; ++i) epilogue(i);
  }
};

// The softmax needs a positive scale: it takes the maximum of the unscaled scores. A bias is divided by the scale.
bool supported(const AttentionInputs& in) {
  if (in.positions.bias != nullptr && in.scale < 0x1p-20) return false;
  return static_cast<float>(in.scale) > 0.0f && in.head_dim > 0 && in.head_dim <= kMaxHeadDim;
}

}  // namespace

void attention_forward_amx(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse, float* scratch) {
  if (!supported(in)) {
    for (AttentionTask part = task; part.q0 < task.q1; part.q0 = part.q1) {
      part.q1 = min(task.q1, part.q0 + kTaskQueries);
      attention_forward_avx512_bf16(in, part, out, lse, scratch);
    }
    return;
  }
  AmxForward(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse), scratch).run();
}

size_t attention_forward_scratch_amx(const AttentionInputs& in, int64_t max_seqlen) {
  if (!supported(in)) return attention_forward_scratch_avx512(in, max_seqlen);
  const bool windowed = in.window < max_seqlen;
  const TileCounts count(in, min(max_seqlen, windowed ? kWindowBlockKeys : kBlockKeys),
                         min(max_seqlen, kAmxTaskQueries), windowed);
  return static_cast<size_t>((count.keys * (count.depth + 2) + 2) * kTileFloats +
                             2 * count.depth * count.value_panel() +
                             count.queries * (3 * count.depth + 1) * kTileFloats + count.queries * kTileRows +
                             AmxPositions::scratch(in, count.keys, count.queries) + 16 * kMaxPieces);
}

int64_t attention_position_half_amx(const AttentionInputs& in, int64_t max_seqlen) {
  if (!supported(in) || in.prepared.backward) return attention_position_half_avx512(in, max_seqlen);
  return amx_position_half(in, max_seqlen);
}

size_t attention_position_tables_amx(const AttentionInputs& in) {
  if (!supported(in) || in.prepared.backward) return attention_position_tables_avx512_bf16(in);
  return static_cast<size_t>(AmxPositionLayout(in).floats);
}

void attention_prepare_positions_amx(const AttentionInputs& in, int64_t head, float* tables) {
  if (!supported(in) || in.prepared.backward) return attention_prepare_positions_avx512_bf16(in, head, tables);
  prepare_amx_positions(in, head, tables);
}

}  // namespace glimodern
