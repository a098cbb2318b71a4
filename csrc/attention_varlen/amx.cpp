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
constexpr int64_t kPlainKeys = 384;  // in scratch at a time without a window ...
constexpr int64_t kBandKeys = 1024;  // ... and with one: all of a task's but with a wide one
constexpr int64_t kLongestDim = 256;
// A query's maximum may lie so much below its largest score, in powers of two, before what was summed is scaled anew.
constexpr float kHeadroom = 8.0f;

struct Sizes {
  int64_t steps;    // of Q K^T: tiles in a row of q
  int64_t blocks;   // of keys
  int64_t tiles;    // of keys in a block
  int64_t queries;  // tiles of them
  // Floats of 16 columns of v; a panel ends in lines of zeros, for an odd number of tiles.
  int64_t panel() const { return (tiles + 1) * kTileFloats / 2; }

  Sizes(const AttentionInputs& in, int64_t keys, int64_t rows, bool windowed)
      : steps(parts_of(in.head_dim, kStep)),
        blocks(parts_of(keys, windowed ? kBandKeys : kPlainKeys)),
        tiles(parts_of(parts_of(keys, blocks > 0 ? blocks : 1), kTileRows)),
        queries(parts_of(rows, kTileRows)) {}
};

// 2^(k / 32), and the slope from there to the next, with the smallest relative error among those exact there (4e-5).
struct Powers {
  alignas(64) float value[32], slope[32];
  constexpr Powers() : value(), slope() {
    double power = 1.0;
    for (int k = 0; k < 32; ++k, power *= 1.0218971486541166) {
      value[k] = static_cast<float>(power);
      slope[k] = static_cast<float>(power * kSlope);
    }
  }
  static constexpr double kSlope = 0.699395;
};
constexpr Powers kPowers;

// x[n] <- 2^(x[n]) for numbers <= 0 (and for what rounding adds above), relative error below 5e-5, which bf16 does not
// show; 0 for -inf. x = n + k / 32 + rest. While tiles are multiplied, one of the two ports of vectors multiplies,
// rounds and compares nothing, but adds and permutes: hence tables. Step by step, as the scheduler holds too few
// instructions to find them side by side.
template <int N>
inline __attribute__((always_inline)) void exp2_of(F* x) {
  const F value0 = V::load(kPowers.value), value1 = V::load(kPowers.value + 16);
  const F slope0 = V::load(kPowers.slope), slope1 = V::load(kPowers.slope + 16);
  const F whole = V::set1(1.5f * (1 << 18));  // its last bit is 1 / 32
  F rest[N], y[N];
  __m512i k[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) rest[n] = _mm512_reduce_ps(x[n], 5 << 4 | _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) k[n] = _mm512_castps_si512(V::add(V::sub(x[n], rest[n]), whole));
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    y[n] = V::fma(_mm512_permutex2var_ps(slope0, k[n], slope1), rest[n], _mm512_permutex2var_ps(value0, k[n], value1));
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) x[n] = _mm512_scalef_ps(y[n], x[n]);
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

// The unit of tiles falls asleep in some 400 ns without a product and a tile stored, and takes 250 ns to wake.
inline void keep_awake(float* anywhere) {
  _tile_dpbf16ps(7, 4, 5);
  _tile_stored(7, anywhere, 64);
}

// k -> [tiles of 16 keys][steps] tiles: line d holds numbers 2 d and 2 d + 1 of every key.
template <bool kWhole>
inline void pack_tile(const Bf16* from, int64_t stride, int64_t rows, int64_t numbers, char* to) {
  F x[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    x[r] = _mm512_castsi512_ps(part_of_row(from + r * stride, kWhole ? kStep : (r < rows ? numbers : 0)));
  }
  V::transpose(x);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) V::store(reinterpret_cast<float*>(to + r * 64), x[r]);
}

void pack_keys(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t steps, char* to, float* anywhere) {
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows, from += kTileRows * stride) {
    if (r0 % 64 == 0) keep_awake(anywhere);
    for (int64_t h = 0; h < steps * kStep; h += kStep, to += kTileBytes) {
      if (rows - r0 >= kTileRows && dim - h >= kStep) {
        pack_tile<true>(from + h, stride, kTileRows, kStep, to);
      } else {
        pack_tile<false>(from + h, stride, rows - r0, dim - h, to);
      }
    }
  }
}

// v -> [2 steps] panels of lines that hold 16 columns of two keys. Of 32 columns an even panel takes the first four of
// every eight, the odd one the others: store_rows puts them back.
template <bool kWhole>
inline void pack_line(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t steps, int64_t panel,
                      float* to) {
  for (int64_t step = 0; step < steps; ++step, from += kStep, to += 2 * panel) {
    const int64_t numbers = dim - step * kStep;
    const __m512i x = part_of_row(from, kWhole ? kStep : (rows > 0 ? numbers : 0));
    const __m512i y = part_of_row(from + stride, kWhole ? kStep : (rows > 1 ? numbers : 0));
    _mm512_store_si512(to, _mm512_unpacklo_epi16(x, y));
    _mm512_store_si512(to + panel, _mm512_unpackhi_epi16(x, y));
  }
}

void pack_values(const Bf16* from, int64_t stride, int64_t rows, int64_t lines, int64_t dim, int64_t steps,
                 int64_t panel, float* to, float* anywhere) {
  for (int64_t line = 0; line < lines; ++line, from += 2 * stride, to += 16) {
    if (line % 32 == 0) keep_awake(anywhere);
    if (rows - 2 * line >= 2 && dim % kStep == 0) {
      pack_line<true>(from, stride, 2, dim, steps, panel, to);
    } else {
      pack_line<false>(from, stride, rows - 2 * line, dim, steps, panel, to);
    }
  }
}

// columns: even, as whole steps of a head's width are.
void multiply_row(int64_t columns, const char* a, int64_t a_stride, int64_t a_step, const char* b, int64_t b_step,
                  int64_t b_column, int64_t steps, float* c, bool more) {
  for (; columns >= 4; columns -= 4, b += 4 * b_column, c += 4 * kTileFloats) {
    multiply_row_of_tiles<4>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
  }
  if (columns == 2) multiply_row_of_tiles<2>(a, a_stride, a_step, b, b_step, b_column, steps, c, more);
}

// 16 queries from `first` on and the tiles of a block's keys that they see.
struct Unit {
  int64_t first, t0, tiles;
  int64_t clear0, clear1;  // of these, tiles that each query sees whole
  const char* q;
  int64_t stride;
};

// What a tile of scores begins with where not every query sees every key: 0 or -inf.
struct Masks {
  struct Edges {  // of the keys that the first query sees; from query to query the window's move on by one
    int64_t first, last, end;
    bool operator!=(const Edges& x) const { return first != x.first || last != x.last || end != x.end; }
  };
  static constexpr int64_t kEnds = 2;  // tiles at either end of a window at most
  alignas(64) float tiles[2 * kEnds * kTileFloats];
  Edges made[2 * kEnds] = {};

  float* of(const Unit& unit, int64_t t) {
    return tiles + (t < unit.clear0 ? t : kEnds + t - unit.clear1) * kTileFloats;
  }

  void make(const AttentionInputs& in, const Unit& unit, int64_t k0, int64_t k1) {
    for (int64_t t = 0; t < unit.tiles; ++t) {
      if (t == unit.clear0 && unit.clear0 < unit.clear1) t = unit.clear1;
      if (t == unit.tiles) return;
      const int64_t column = k0 + (unit.t0 + t) * kTileRows;
      const Edges edges{larger(unit.first - in.window - column, -kTileRows),
                        smaller(unit.first + in.window + 1 - column, kTileRows), smaller(k1 - column, kTileRows)};
      float* row = of(unit, t);
      Edges& before = made[(row - tiles) / kTileFloats];
      if (!(edges != before)) continue;
      before = edges;
      for (int64_t r = 0; r < kTileRows; ++r, row += 16) {
        const int64_t first = smaller(larger(edges.first + r, 0), 16);
        const int64_t last = larger(smaller(larger(edges.last + r, 0), edges.end), first);
        const auto visible = static_cast<__mmask16>((1u << last) - (1u << first));
        V::store(row, _mm512_mask_mov_ps(V::set1(-__builtin_inff()), visible, V::zero()));
      }
    }
  }
};

// Products for two tiles of scores, in tiles 6 and 7; for heads of 64 and less one after the other, so that they can be
// begun in the midst of other work.
struct Scores {
  const char *q, *kt;
  int64_t stride, steps, tiles;
  float* s;
  const float* masks;
  int64_t clear0, clear1;

  bool has(int64_t t) const { return t < tiles; }
  void load_queries(int64_t t, int64_t k) const {
    if (has(t)) _tile_loadd(4, q + k * 64, stride);
  }
  bool whole(int64_t t) const { return clear0 <= t && t < clear1; }
  const float* mask(int64_t t) const { return masks + (t < clear0 ? t : Masks::kEnds + t - clear1) * kTileFloats; }
  template <bool kFirst>
  void left(int64_t t, int64_t k) const {
    if (!has(t)) return;
    if (kFirst && whole(t)) _tile_zero(6);
    if (kFirst && !whole(t)) _tile_loadd(6, mask(t), 64);
    _tile_loadd(5, kt + (t * steps + k) * kTileBytes, 64);
    _tile_dpbf16ps(6, 4, 5);
  }
  template <bool kFirst>
  void right(int64_t t, int64_t k) const {
    if (!has(t + 1)) return;
    if (kFirst && whole(t + 1)) _tile_zero(7);
    if (kFirst && !whole(t + 1)) _tile_loadd(7, mask(t + 1), 64);
    _tile_loadd(5, kt + ((t + 1) * steps + k) * kTileBytes, 64);
    _tile_dpbf16ps(7, 4, 5);
  }
  void store_left(int64_t t) const {
    if (has(t)) _tile_stored(6, s + t * kTileFloats, 64);
  }
  void store_right(int64_t t) const {
    if (has(t + 1)) _tile_stored(7, s + (t + 1) * kTileFloats, 64);
  }
  void both(int64_t t) const {
    if (!has(t)) return;
    load_queries(t, 0);
    left<true>(t, 0);
    right<true>(t, 0);
    for (int64_t k = 1; k < steps; ++k) {
      load_queries(t, k);
      left<false>(t, k);
      right<false>(t, k);
    }
    store_left(t);
    store_right(t);
  }
};

// Sums of 32 keys' values, of up to four columns of tiles, in tiles 0 to 3.
struct Sums {
  const char *p, *v;
  int64_t panel, columns;  // panel: bytes

  void begin(const float* sums, bool more) const {
    const char* c = reinterpret_cast<const char*>(sums);
    if (more) {
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
  void load_weights(int64_t t) const { _tile_loadd(4, p + t * kTileBytes, 64); }
  template <int N>
  void add(int64_t t) const {
    if (N > 1 && columns == 2) return;
    _tile_loadd(5, v + t * (kTileBytes / 2) + N * panel, 64);
    if constexpr (N == 0) _tile_dpbf16ps(0, 4, 5);
    if constexpr (N == 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (N == 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (N == 3) _tile_dpbf16ps(3, 4, 5);
  }
  void end(float* sums) const {
    char* const c = reinterpret_cast<char*>(sums);
    _tile_stored(0, c, 64);
    _tile_stored(1, c + kTileBytes, 64);
    if (columns == 2) return;
    _tile_stored(2, c + 2 * kTileBytes, 64);
    _tile_stored(3, c + 3 * kTileBytes, 64);
  }
};

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

#define GLIMODERN_BARRIER \
  __asm__ volatile("" ::: "memory")  // the tiles' intrinsics do not say that they read and write

template <int N>
struct Count {
  static constexpr int value = N;
};

struct Softmax {
  float scale;               // of scores, to powers of two
  const float* shift;        // [16]
  const uint32_t* counters;  // [16], of the first column
  uint32_t drop_below;
};

// s, tiles of scores -> in the place of every second one two tiles of rounded probabilities 2^(scale s - shift), 0
// where dropped; total [16 rows, 16 lanes] += them all. In between, one product at a time (instructions
// retire in order, and one takes 52 cycles), the next queries' scores and the sums of the tiles before.
template <bool kDropout, class Between>
void weigh_tiles(float* s, int64_t tiles, const Softmax& softmax, float* total, const Scores& scores, const Sums& sums,
                 const Between& between) {
  const F factor = V::set1(softmax.scale);
  const V::I bound = V::set1(softmax.drop_below), lanes = V::mul(V::lanes(), V::set1(kGolden));
  int64_t t = 0;
  float* row = s;
  // Rows r to r + kRows - 1 of N tiles.
  constexpr int kRows = 2;
  const auto rows = [&](auto count, int r) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    F x[kRows * N];
#pragma GCC unroll 8
    for (int n = 0; n < kRows * N; ++n) {
      const F score = V::load(row + n % N * kTileFloats + (r + n / N) * 16);
      x[n] = V::fms(factor, score, V::set1(softmax.shift[r + n / N]));
    }
    exp2_of<kRows * N>(x);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      F first = x[n * N], second = N == 2 ? x[n * N + N - 1] : V::zero();
      float* const to = total + (r + n) * 16;
      V::store(to, V::add(V::load(to), N == 2 ? V::add(first, second) : first));
      if (kDropout) {
        const auto counter = V::add(lanes, V::set1(softmax.counters[r + n] + static_cast<uint32_t>(t * 16) * kGolden));
        first = V::where_at_least(mix32_lanes<V>(counter), bound, first);
        second = V::where_at_least(mix32_lanes<V>(V::add(counter, V::set1(16 * kGolden))), bound, second);
      }
      const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
      __builtin_memcpy(row + (r + n) * 16, &both, sizeof both);
    }
  };
  const bool two_steps = scores.steps == 2;
  const auto slot = [&](int n) __attribute__((always_inline)) {
    if (n == 0) {
      if (scores.steps > 2) return scores.both(t);
      if (t > 0) scores.store_left(t - 2);
      scores.load_queries(t, 0);
      scores.left<true>(t, 0);
    }
    if (n == 1 && scores.steps <= 2) {
      if (t > 0) scores.store_right(t - 2);
      scores.right<true>(t, 0);
    }
    if (n == 4 && two_steps) {
      scores.load_queries(t, 1);
      scores.left<false>(t, 1);
    }
    if (n == 5 && two_steps) scores.right<false>(t, 1);
    if (t == 0) return;
    if (n == 2 || n == 6) sums.load_weights(t - 2);
    if (n == 2) sums.add<0>(t - 2);
    if (n == 3) sums.add<1>(t - 2);
    if (n == 6) sums.add<2>(t - 2);
    if (n == 7) sums.add<3>(t - 2);
  };
  for (; t + 2 <= tiles; t += 2, row += 2 * kTileFloats) {
    GLIMODERN_BARRIER;
    between(t);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += kRows) {
      slot(r / 2);
      rows(Count<2>{}, r);
    }
  }
  GLIMODERN_BARRIER;
  if (t < tiles) {
    between(t);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += kRows) {
      slot(r / 2);
      rows(Count<1>{}, r);
    }
    t += 2;
    GLIMODERN_BARRIER;
  }
  if (scores.steps <= 2) {
    scores.store_left(t - 2);
    scores.store_right(t - 2);
  }
  sums.load_weights(t - 2);
  sums.add<0>(t - 2);
  sums.add<1>(t - 2);
  sums.add<2>(t - 2);
  sums.add<3>(t - 2);
  for (; t < scores.tiles; t += 2) scores.both(t);
  GLIMODERN_BARRIER;
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

struct Forward {
  const AttentionInputs& in;
  const AttentionTask& task;
  Bf16* out;
  float* lse;
  int64_t rows, dim, lo, hi;
  Sizes size;
  int64_t steps, columns, panel;
  float scale;
  char* kt;
  float *v, *s[2], *sums, *total, *max;  // max: scaled
  char* copy;
  const Bf16* q;
  int64_t in_place, ahead;

  Forward(const AttentionInputs& inputs, const AttentionTask& whole, Bf16* result, float* logs, float* scratch)
      : in(inputs),
        task(whole),
        out(result),
        lse(logs),
        rows(task.q1 - task.q0),
        dim(in.head_dim),
        lo(larger(task.start, task.q0 - in.window)),
        hi(smaller(task.end, task.q1 + in.window)),
        size(in, hi - lo, rows, in.window < task.end - task.start),
        steps(size.steps),
        columns(2 * steps),
        panel(size.panel()),
        scale(static_cast<float>(in.scale * 1.4426950408889634)),
        q(first_row<Bf16>(in.q, task.q0, task.head)),
        in_place(dim % kStep == 0 ? smaller(size.queries, (in.tokens() - task.q0) / kTileRows) : 0),
        ahead(task.q0) {
    Pieces pieces{scratch};
    kt = reinterpret_cast<char*>(pieces.take(size.tiles * steps * kTileFloats));
    v = pieces.take(columns * panel);
    for (float*& piece : s) piece = pieces.take((size.tiles + 1) * kTileFloats);
    sums = pieces.take((size.blocks > 1 ? size.queries : 1) * columns * kTileFloats);
    total = pieces.take(size.queries * kTileFloats);
    max = pieces.take(size.queries * kTileRows);
    copy = reinterpret_cast<char*>(pieces.take(size.queries * steps * kTileFloats));
  }

  float* sums_of(int64_t i) const { return size.blocks > 1 ? sums + i * columns * kTileFloats : sums; }

  // The first unit from i on that sees keys of the block [k0, k1); i is its number, or size.queries.
  Unit unit_from(int64_t& i, int64_t k0, int64_t k1) const {
    for (; i < size.queries; ++i) {
      const int64_t first = task.q0 + i * kTileRows, last = smaller(task.q1, first + kTileRows);
      const Columns some = seen(in, first, last, k0, k1);
      if (some.first >= some.last) continue;
      const int64_t t0 = some.first / kTileRows;
      const bool as_is = i < in_place;
      const int64_t all0 = seen(in, last - 1, last, k0, k1).first, all1 = seen(in, first, first + 1, k0, k1).last;
      return {first,
              t0,
              parts_of(some.last, kTileRows) - t0,
              parts_of(all0, kTileRows) - t0,
              larger(all1, 0) / kTileRows - t0,
              as_is ? reinterpret_cast<const char*>(q + i * kTileRows * in.q.row)
                    : copy + (i - in_place) * steps * kTileBytes,
              as_is ? in.q.row * 2 : steps * 64};
    }
    return {0, 0, 0, 0, 0, nullptr, 0};
  }

  // The maximum of unit i, and what was summed under another one.
  void raise(int64_t i, const float* scores, int64_t tiles, bool more, float* shift) const {
    float* const unit_max = max + i * kTileRows;
    const F before = V::load(unit_max), now = V::mul(V::set1(scale), largest_of_rows(scores, tiles));
    const __mmask16 raised = _mm512_cmp_ps_mask(now, V::add(before, V::set1(kHeadroom)), _CMP_GT_OQ);
    const F after = _mm512_mask_mov_ps(before, raised, now);
    V::store(unit_max, after);
    V::store(shift, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(after, V::set1(-__builtin_inff()), _CMP_NEQ_UQ), after));
    if (raised == 0 || !more) return;
    alignas(64) float decay[kTileRows];
    F change = V::sub(before, after);
    exp2_of<1>(&change);
    V::store(decay, change);
    for (int64_t r = 0; r < kTileRows; ++r) {
      if ((raised >> r & 1) == 0) continue;
      scale_row<V>(decay[r], 0, 16, total + i * kTileFloats + r * 16);
      for (int64_t c = 0; c < columns; ++c) scale_row<V>(decay[r], 0, 16, sums_of(i) + c * kTileFloats + r * 16);
    }
  }

  void finish(int64_t i) const {
    const int64_t first = task.q0 + i * kTileRows, count = smaller(task.q1 - first, kTileRows);
    F lanes[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) lanes[r] = V::load(total + i * kTileFloats + r * 16);
    const F sum = across(lanes, [](F x, F y) { return V::add(x, y); });
    alignas(64) float factor[kTileRows], all[kTileRows];
    V::store(factor, V::div(V::set1(in.dropout ? static_cast<float>(in.keep_scale) : 1.0f), sum));
    if (lse != nullptr) {
      V::store(all, sum);
      for (int64_t r = 0; r < count; ++r) {
        const double shift = max[i * kTileRows + r] * (in.scale / static_cast<double>(scale));
        lse[task.head * in.tokens() + first + r] = static_cast<float>(shift + __builtin_logf(all[r]));
      }
    }
    store_rows(sums_of(i), factor, count, steps, dim, out + (first * in.heads + task.head) * dim, in.heads * dim);
  }

  void fetch_until(int64_t token) {
    const AttentionRows results{out, in.heads * dim, dim};
    for (; ahead < smaller(token, task.q1); ++ahead) {
      fetch<Bf16, true>(results, ahead, task.head, dim);
      if (task.head + 1 == in.heads) continue;
      fetch<Bf16, false>(in.q, ahead, task.head + 1, dim);
      fetch<Bf16, false>(in.k, ahead, task.head + 1, dim);
      fetch<Bf16, false>(in.v, ahead, task.head + 1, dim);
    }
  }

  template <bool kDropout>
  void block(int64_t k0, int64_t k1) {
    pack_keys(first_row<Bf16>(in.k, k0, task.head), in.k.row, k1 - k0, dim, steps, kt, s[0]);
    pack_values(first_row<Bf16>(in.v, k0, task.head), in.v.row, k1 - k0, (parts_of(k1 - k0, kTileRows) + 1) * 8, dim,
                steps, panel, v, s[0]);
    Masks masks;
    int64_t i = 0;
    int side = 0;
    const auto scores_of = [&](const Unit& unit, float* to) {
      masks.make(in, unit, k0, k1);
      return Scores{
          unit.q,     kt + unit.t0 * steps * kTileBytes, unit.stride, steps, unit.tiles, to, masks.tiles, unit.clear0,
          unit.clear1};
    };
    Unit unit = unit_from(i, k0, k1);
    const Scores first = scores_of(unit, s[0]);
    GLIMODERN_BARRIER;
    for (int64_t t = 0; t < unit.tiles; t += 2) first.both(t);
    GLIMODERN_BARRIER;
    while (i < size.queries) {
      float* const now = s[side];
      side ^= 1;
      int64_t j = i + 1;
      const Unit next = unit_from(j, k0, k1);
      alignas(64) float shift[kTileRows];
      raise(i, now, unit.tiles, k0 > lo, shift);
      uint32_t counters[kTileRows];
      for (int64_t r = 0; r < kTileRows && kDropout; ++r) {
        const uint32_t key = dropout_key(static_cast<uint64_t>((unit.first + r) * in.heads + task.head), in.seed);
        counters[r] = key + static_cast<uint32_t>(k0 + unit.t0 * kTileRows - task.start) * kGolden;
      }
      const char* values = reinterpret_cast<const char*>(v + unit.t0 * (kTileFloats / 2));
      const Sums weighted{reinterpret_cast<const char*>(now), values, panel * 4, columns};
      float* const unit_sums = sums_of(i);
      const Scores scores = scores_of(next, s[side]);
      GLIMODERN_BARRIER;
      weighted.begin(unit_sums, k0 > lo);
      weigh_tiles<kDropout>(now, unit.tiles, {scale, shift, counters, in.drop_below}, total + i * kTileFloats, scores,
                            weighted, [&](int64_t t) { fetch_until(unit.first + kTileRows * (t + 2) / unit.tiles); });
      weighted.end(unit_sums);
      for (int64_t c = 4; c < columns; c += 4) {
        multiply_row(smaller(columns - c, 4), reinterpret_cast<const char*>(now), 64, 2 * kTileBytes,
                     values + c * panel * 4, kTileBytes, panel * 4, parts_of(unit.tiles, 2),
                     unit_sums + c * kTileFloats, k0 > lo);
      }
      GLIMODERN_BARRIER;
      if (size.blocks == 1) finish(i);
      unit = next;
      i = j;
    }
  }

  void run() {
    copy_rows(q + in_place * kTileRows * in.q.row, in.q.row, rows - in_place * kTileRows,
              (size.queries - in_place) * kTileRows, dim, steps, copy);
    for (int64_t i = 0; i < size.queries; ++i) V::store(max + i * kTileRows, V::set1(-__builtin_inff()));
    clear<V>(total, size.queries * kTileFloats);
    if (size.blocks > 1) clear<V>(sums, size.queries * columns * kTileFloats);
    const WholeTiles tiles;
    const auto run_block = in.dropout ? &Forward::block<true> : &Forward::block<false>;
    for (int64_t k0 = lo; k0 < hi; k0 += size.tiles * kTileRows) {
      (this->*run_block)(k0, smaller(hi, k0 + size.tiles * kTileRows));
    }
    for (int64_t i = 0; i < size.queries && size.blocks > 1; ++i) finish(i);
  }
};

// The softmax here takes the largest product for the largest score.
bool takes(const AttentionInputs& in) {
  return static_cast<float>(in.scale) > 0.0f && in.head_dim > 0 && in.head_dim <= kLongestDim;
}

}  // namespace

void attention_forward_amx(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse, float* scratch) {
  if (!takes(in)) {
    for (AttentionTask part = task; part.q0 < task.q1; part.q0 = part.q1) {
      part.q1 = smaller(task.q1, part.q0 + kTaskQueries);
      attention_forward_avx512_bf16(in, part, out, lse, scratch);
    }
    return;
  }
  Forward(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse), scratch).run();
}

size_t attention_forward_scratch_amx(const AttentionInputs& in, int64_t longest) {
  if (!takes(in)) return attention_forward_scratch_avx512(in, longest);
  const bool windowed = in.window < longest;
  const Sizes size(in, smaller(longest, windowed ? kBandKeys : kPlainKeys), smaller(longest, kTileTaskQueries),
                   windowed);
  return static_cast<size_t>((size.tiles * (size.steps + 2) + 2) * kTileFloats + 2 * size.steps * size.panel() +
                             size.queries * (3 * size.steps + 1) * kTileFloats + size.queries * kTileRows +
                             16 * kPieces);
}

}  // namespace glimodern
