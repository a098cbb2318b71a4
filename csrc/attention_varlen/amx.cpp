// The forward in bf16 by whole tiles (csrc/simd/amx.h): 16 queries against tiles of 16 keys. Both products' right sides
// are packed, q is read where it lies. A tile of scores is stored, its softmax taken in vectors of 16 keys, and the
// probabilities, rounded, are the left side's tiles of P V, 32 keys each.
#include "simd/amx.h"

#include "simd/avx512_bf16.h"

#include "attention_varlen/tiles.h"

namespace glimodern {
namespace {

using V = Avx512Bf16;
using F = V::F;

constexpr int64_t kTileFloats = kTileBytes / 4;
constexpr int64_t kStep = 32;        // numbers of bf16 in a row of a tile
constexpr int64_t kPlainKeys = 256;  // in scratch at a time without a window ...
constexpr int64_t kLongestDim = 256;
// A query's maximum may lie so much below its largest score, in powers of two, before what was summed is scaled anew.
constexpr float kHeadroom = 8.0f;

struct Sizes {
  int64_t steps;    // of Q K^T: tiles in a row of q
  int64_t blocks;   // of keys
  int64_t tiles;    // of keys in a block
  int64_t queries;  // tiles of them
  int64_t panel() const {
    return (tiles + 1) * kTileFloats / 2;
  }  // of 16 columns of v, floats; 16 lines of zeros end it

  Sizes(const AttentionInputs& in, int64_t keys, int64_t rows, bool windowed)
      : steps(parts_of(in.head_dim, kStep)),
        blocks(parts_of(keys, windowed ? kWindowKeys : kPlainKeys)),
        tiles(parts_of(parts_of(keys, blocks > 0 ? blocks : 1), kTileRows)),
        queries(parts_of(rows, kTileRows)) {}
};

// 2^x for x <= 0 (and for what rounding adds above), relative error below 3e-6, which bf16 does not show; 0 for -inf.
// 2^floor(x) times the polynomial of degree 4 in the rest with the smallest relative error among those exact at 0.
inline F exp2_of(F x) {
  const F r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F y = V::set1(1.342668553e-2f);
  y = V::fma(y, r, V::set1(5.224247220e-2f));
  y = V::fma(y, r, V::set1(2.412802057e-1f));
  y = V::fma(y, r, V::set1(6.930448448e-1f));
  y = V::fma(y, r, V::set1(1.0f));
  return _mm512_scalef_ps(y, x);
}

// Lane r of the result: x[r]'s lanes, all combined.
template <class Combine>
F across(const F* x, Combine combine) {
  F y[8], z[4], w[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    y[i] = combine(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // in its four parts: rows i, i + 8, i + 4, i + 12
    z[i] = combine(_mm512_shuffle_f32x4(y[i], y[i + 4], 0x88), _mm512_shuffle_f32x4(y[i], y[i + 4], 0xDD));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) w[i] = combine(_mm512_unpacklo_ps(z[i], z[i + 2]), _mm512_unpackhi_ps(z[i], z[i + 2]));
  const F all = combine(_mm512_unpacklo_ps(w[0], w[1]), _mm512_unpackhi_ps(w[0], w[1]));
  return _mm512_shuffle_f32x4(all, all, 0xD8);
}

inline __m512i part_of_row(const Bf16* from, int64_t numbers) {
  if (numbers >= kStep) return _mm512_loadu_si512(from);
  const __mmask32 exists = numbers <= 0 ? 0 : (1u << numbers) - 1;
  return _mm512_maskz_loadu_epi16(exists, from);
}

// Rows -> whole rows of tiles, zero-padded; rows from `rows` to `padded` are zeros.
void copy_rows(const Bf16* from, int64_t stride, int64_t rows, int64_t padded, int64_t dim, int64_t steps, char* to) {
  for (int64_t r = 0; r < padded; ++r) {
    for (int64_t step = 0; step < steps; ++step, to += 64) {
      _mm512_store_si512(to, part_of_row(from + r * stride + step * kStep, r < rows ? dim - step * kStep : 0));
    }
  }
}

// k -> [tiles of 16 keys][steps] tiles: line d holds numbers 2 d and 2 d + 1 of every key.
void pack_keys(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t steps, char* to) {
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
    for (int64_t step = 0; step < steps; ++step, to += kTileBytes) {
      F x[kTileRows];
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const int64_t numbers = r0 + r < rows ? dim - step * kStep : 0;
        x[r] = _mm512_castsi512_ps(part_of_row(from + (r0 + r) * stride + step * kStep, numbers));
      }
      V::transpose(x);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) V::store(reinterpret_cast<float*>(to + r * 64), x[r]);
    }
  }
}

// v -> [2 steps] panels of lines that hold 16 columns of two keys. Of 32 columns an even panel takes the first four of
// every eight, the odd one the others: store_rows puts them back.
void pack_values(const Bf16* from, int64_t stride, int64_t rows, int64_t lines, int64_t dim, int64_t steps,
                 int64_t panel, float* to) {
  for (int64_t line = 0; line < lines; ++line, from += 2 * stride, to += 16) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t numbers = dim - step * kStep;
      const __m512i x = part_of_row(from + step * kStep, 2 * line < rows ? numbers : 0);
      const __m512i y = part_of_row(from + stride + step * kStep, 2 * line + 1 < rows ? numbers : 0);
      _mm512_store_si512(to + 2 * step * panel, _mm512_unpacklo_epi16(x, y));
      _mm512_store_si512(to + (2 * step + 1) * panel, _mm512_unpackhi_epi16(x, y));
    }
  }
}

void multiply_row(int64_t columns, const char* a, int64_t a_stride, int64_t a_step, const char* b, int64_t b_step,
                  int64_t b_column, int64_t steps, float* c, bool more) {
  for (; columns >= 4; columns -= 4, b += 4 * b_column, c += 4 * kTileFloats) {
    multiply_row_of_tiles<4>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
  }
  if (columns == 3) multiply_row_of_tiles<3>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
  if (columns == 2) multiply_row_of_tiles<2>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
  if (columns == 1) multiply_row_of_tiles<1>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
}

// 16 queries from `first` on and the tiles [t0, t1) of a block's keys that they see.
struct Unit {
  int64_t first, t0, t1;
  Columns all;  // seen by every one of them
};

// Scores that are not seen <- -inf.
void hide_unseen(const AttentionInputs& in, const Unit& unit, int64_t k0, int64_t k1, float* s) {
  for (int64_t t = unit.t0; t < unit.t1; ++t) {
    if (unit.all.first <= t * 16 && t * 16 + 16 <= unit.all.last) continue;
    float* row = s + (t - unit.t0) * kTileFloats;
    for (int64_t r = 0; r < kTileRows; ++r, row += 16) {
      const Columns see = seen(in, unit.first + r, unit.first + r + 1, k0, k1);
      const int64_t first = smaller(larger(see.first - t * 16, 0), 16),
                    last = smaller(larger(see.last - t * 16, 0), 16);
      const __mmask16 mask = static_cast<__mmask16>((1u << last) - (first < last ? 1u << first : 1u << last));
      V::store(row, _mm512_mask_mov_ps(V::set1(-__builtin_inff()), mask, V::load(row)));
    }
  }
}

F largest_of_rows(const float* s, int64_t tiles) {
  F x[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) x[r] = V::load(s + r * 16);
  for (int64_t t = 1; t < tiles; ++t) {
    s += kTileFloats;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) x[r] = V::max(x[r], V::load(s + r * 16));
  }
  return across(x, [](F a, F b) { return V::max(a, b); });
}

// s, tiles of scores -> p, rounded probabilities 2^(scale s - shift) where kept; total [16 rows, 16 lanes] += them all.
template <bool kDropout>
void weigh_tiles(const float* s, int64_t tiles, float scale, const float* shift, const uint32_t* counters,
                 uint32_t drop_below, float* total, char* p) {
  const F factor = V::set1(scale);
  const V::I bound = V::set1(drop_below), lanes = V::mul(V::lanes(), V::set1(kGolden));
  F sum[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) sum[r] = V::load(total + r * 16);
  for (int64_t t = 0; t < tiles; t += 2, s += 2 * kTileFloats, p += kTileBytes) {
    const bool two = t + 1 < tiles;
    const auto weight = [&](int r, int n) {
      const F x = exp2_of(V::fms(factor, V::load(s + n * kTileFloats + r * 16), V::set1(shift[r])));
      sum[r] = V::add(sum[r], x);
      if (!kDropout) return x;
      const auto column = V::set1(counters[r] + static_cast<uint32_t>((t + n) * 16) * kGolden);
      return V::where_at_least(mix32_lanes<V>(V::add(lanes, column)), bound, x);
    };
    const auto put = [p](int r, F x, F y) {
      const __m512bh both = _mm512_cvtne2ps_pbh(y, x);
      __builtin_memcpy(p + r * 64, &both, sizeof both);
    };
    if (two) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const F x = weight(r, 0);
        put(r, x, weight(r, 1));
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) put(r, weight(r, 0), V::zero());
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) V::store(total + r * 16, sum[r]);
}

// sums [2 steps] tiles, their columns as pack_values leaves them -> rows of the result.
void store_rows(const float* sums, const float* factor, int64_t rows, int64_t steps, int64_t dim, Bf16* to,
                int64_t stride) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t r = 0; r < rows; ++r, sums += 16, to += stride) {
    const F scale = V::set1(factor[r]);
    for (int64_t step = 0; step < steps; ++step) {
      const F x = V::mul(scale, V::load(sums + 2 * step * kTileFloats));
      const F y = V::mul(scale, V::load(sums + (2 * step + 1) * kTileFloats));
      const __m512bh both = _mm512_cvtne2ps_pbh(y, x);
      __m512i bits;
      __builtin_memcpy(&bits, &both, sizeof bits);
      bits = _mm512_permutexvar_epi64(order, bits);
      const int64_t numbers = dim - step * kStep;
      if (numbers >= kStep) {
        _mm512_storeu_si512(to + step * kStep, bits);
      } else {
        _mm512_mask_storeu_epi16(to + step * kStep, (1u << numbers) - 1, bits);
      }
    }
  }
}

void forward(const AttentionInputs& in, const AttentionTask& task, Bf16* out, float* lse, float* scratch) {
  const int64_t rows = task.q1 - task.q0, dim = in.head_dim;
  const int64_t lo = larger(task.start, task.q0 - in.window), hi = smaller(task.end, task.q1 + in.window);
  const Sizes size(in, hi - lo, rows, in.window < task.end - task.start);
  const int64_t steps = size.steps, columns = 2 * steps, panel = size.panel();
  const float scale = static_cast<float>(in.scale * 1.4426950408889634);

  Pieces pieces{scratch};
  char* const kt = reinterpret_cast<char*>(pieces.take(size.tiles * steps * kTileFloats));
  float* const v = pieces.take(columns * panel);
  float* const s = pieces.take(size.tiles * kTileFloats);
  char* const p = reinterpret_cast<char*>(pieces.take((size.tiles + 1) / 2 * kTileFloats));
  float* const sums = pieces.take(size.queries * columns * kTileFloats);
  float* const total = pieces.take(size.queries * kTileFloats);
  float* const max = pieces.take(size.queries * kTileRows);  // scaled
  char* const copy = reinterpret_cast<char*>(pieces.take(size.queries * steps * kTileFloats));

  const Bf16* q = first_row<Bf16>(in.q, task.q0, task.head);
  const int64_t in_place = dim % kStep == 0 ? smaller(size.queries, (in.tokens() - task.q0) / kTileRows) : 0;
  copy_rows(q + in_place * kTileRows * in.q.row, in.q.row, rows - in_place * kTileRows,
            (size.queries - in_place) * kTileRows, dim, steps, copy);

  const WholeTiles tiles;
  for (int64_t i = 0; i < size.queries; ++i) V::store(max + i * 16, V::set1(-__builtin_inff()));
  clear<V>(total, size.queries * kTileFloats);
  if (size.blocks > 1) clear<V>(sums, size.queries * columns * kTileFloats);

  for (int64_t k0 = lo; k0 < hi; k0 += size.tiles * kTileRows) {
    const int64_t k1 = smaller(hi, k0 + size.tiles * kTileRows);
    pack_keys(first_row<Bf16>(in.k, k0, task.head), in.k.row, k1 - k0, dim, steps, kt);
    pack_values(first_row<Bf16>(in.v, k0, task.head), in.v.row, k1 - k0, (parts_of(k1 - k0, kTileRows) + 1) * 8, dim,
                steps, panel, v);
    for (int64_t i = 0; i < size.queries; ++i) {
      const int64_t first = task.q0 + i * kTileRows, last = smaller(task.q1, first + kTileRows);
      const Columns some = seen(in, first, last, k0, k1);
      if (some.first >= some.last) continue;
      const Unit unit{first,
                      some.first / 16,
                      parts_of(some.last, 16),
                      {seen(in, last - 1, last, k0, k1).first, seen(in, first, first + 1, k0, k1).last}};
      const int64_t seen_tiles = unit.t1 - unit.t0;
      const bool as_is = i < in_place;
      const char* left = as_is ? reinterpret_cast<const char*>(q + i * kTileRows * in.q.row)
                               : copy + (i - in_place) * steps * kTileBytes;
      multiply_row(seen_tiles, left, as_is ? in.q.row * 2 : steps * 64, 64, kt + unit.t0 * steps * kTileBytes,
                   kTileBytes, steps * kTileBytes, steps, s, false);
      hide_unseen(in, unit, k0, k1, s);

      // The maximum, and what was summed under another one.
      float* const unit_max = max + i * 16;
      float* const unit_total = total + i * kTileFloats;
      float* const unit_sums = sums + i * columns * kTileFloats;
      const F before = V::load(unit_max), now = V::mul(V::set1(scale), largest_of_rows(s, seen_tiles));
      const __mmask16 raised = _mm512_cmp_ps_mask(now, V::add(before, V::set1(kHeadroom)), _CMP_GT_OQ);
      alignas(64) float shift[16], decay[16];
      const F after = _mm512_mask_mov_ps(before, raised, now);
      V::store(unit_max, after);
      V::store(shift, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(after, V::set1(-__builtin_inff()), _CMP_NEQ_UQ), after));
      if (raised != 0 && k0 > lo) {
        V::store(decay, exp2_of(V::sub(before, after)));
        for (int r = 0; r < kTileRows; ++r) {
          if ((raised >> r & 1) == 0) continue;
          scale_row<V>(decay[r], 0, 16, unit_total + r * 16);
          for (int64_t c = 0; c < columns; ++c) scale_row<V>(decay[r], 0, 16, unit_sums + c * kTileFloats + r * 16);
        }
      }

      if (in.dropout) {
        uint32_t counters[kTileRows];
        for (int64_t r = 0; r < kTileRows; ++r) {
          const uint32_t key = dropout_key(static_cast<uint64_t>((first + r) * in.heads + task.head), in.seed);
          counters[r] = key + static_cast<uint32_t>(k0 + unit.t0 * 16 - task.start) * kGolden;
        }
        weigh_tiles<true>(s, seen_tiles, scale, shift, counters, in.drop_below, unit_total, p);
      } else {
        weigh_tiles<false>(s, seen_tiles, scale, shift, nullptr, 0, unit_total, p);
      }
      multiply_row(columns, p, 64, kTileBytes, reinterpret_cast<const char*>(v + unit.t0 * kTileFloats / 2), kTileBytes,
                   panel * 4, parts_of(seen_tiles, 2), unit_sums, size.blocks > 1);
    }
  }

  for (int64_t i = 0; i < size.queries; ++i) {
    const int64_t first = task.q0 + i * kTileRows, count = smaller(task.q1 - first, kTileRows);
    F lanes[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) lanes[r] = V::load(total + i * kTileFloats + r * 16);
    const F sum = across(lanes, [](F a, F b) { return V::add(a, b); });
    alignas(64) float factor[16], all[16];
    V::store(all, sum);
    V::store(factor, V::div(V::set1(in.dropout ? static_cast<float>(in.keep_scale) : 1.0f), sum));
    if (lse != nullptr) {
      for (int64_t r = 0; r < count; ++r) {
        const double shift = max[i * 16 + r] * (in.scale / static_cast<double>(scale));
        lse[task.head * in.tokens() + first + r] = static_cast<float>(shift + __builtin_logf(all[r]));
      }
    }
    store_rows(sums + i * columns * kTileFloats, factor, count, steps, dim, out + (first * in.heads + task.head) * dim,
               in.heads * dim);
  }
}

// The softmax here takes the largest product for the largest score.
bool takes(const AttentionInputs& in) { return in.scale > 0.0 && in.head_dim > 0 && in.head_dim <= kLongestDim; }

}  // namespace

void attention_forward_amx(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse, float* scratch) {
  if (!takes(in)) return attention_forward_avx512_bf16(in, task, out, lse, scratch);
  forward(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse), scratch);
}

size_t attention_forward_scratch_amx(const AttentionInputs& in, int64_t longest) {
  if (!takes(in)) return attention_forward_scratch_avx512(in, longest);
  const bool windowed = in.window < longest;
  const Sizes size(in, smaller(longest, windowed ? kWindowKeys : kPlainKeys), smaller(longest, kTaskQueries), windowed);
  return static_cast<size_t>(size.tiles * (size.steps + 2) * kTileFloats + 2 * size.steps * size.panel() +
                             size.queries * (3 * size.steps + 1) * kTileFloats + size.queries * kTileRows +
                             16 * kPieces);
}

}  // namespace glimodern
