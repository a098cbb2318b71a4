// Sixteen fp32 lanes: AVX-512 F, DQ, BW and VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bf16.h"

namespace {

struct Avx512 {
  using F = __m512;   // floats
  using I = __m512i;  // uint32 lanes
  static constexpr int width = 16;
  // Register tile of the span scores: spans by number of types. spans * types accumulators, the shorter side, one
  // vector of the longer side and a zero fit 32 registers.
  static constexpr int max_tile_types = 9;
  static constexpr int tile_spans[max_tile_types + 1] = {0, 8, 8, 8, 6, 4, 4, 3, 3, 3};
  // Span scores go through so many columns at a time. They read b in place, from L2 if its rows share sets of L1: three
  // loads for 27 FMAs.
  static constexpr int64_t max_score_columns = 768;
  static constexpr bool score_b_in_place = true;
  static constexpr int grad_rows = 6, grad_vectors = 4;
  static constexpr int gemm_rows = 12, gemm_vectors = 2;  // register tile of simd/gemm.h

  static F load(const float* p) { return _mm512_load_ps(p); }
  static F loadu(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_store_ps(p, x); }
  static void storeu(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F loadu(const Bf16* p) {
    const I bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static void storeu(Bf16* p, F x) {
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest_bf16(canonical_nan(x)), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
  }
  template <class T>
  static void storeu2(T* p, F x, F y) {
    storeu(p, x), storeu(p + width, y);
  }
  // x and y are each two blocks of 8 lanes: *first gets the first blocks, *second the second ones.
  static void split8(F x, F y, F* first, F* second) {
    *first = _mm512_shuffle_f32x4(x, y, 0x44), *second = _mm512_shuffle_f32x4(x, y, 0xEE);
  }
  // Elements p[0 .. 32) by even and odd index. One operation per vector; loadu and storeu in memory order take two or
  // more. A NaN that is stored or rounded must have a lower half of zeros.
  static void load_even_odd(const Bf16* p, F* even, F* odd) {
    const I bits = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    *odd = upper_half(bits);
  }
  static void store_even_odd(Bf16* p, F even, F odd) {
    const I low = _mm512_srli_epi32(nearest_bf16(even), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xAAAAAAAA, low, nearest_bf16(odd)));
  }
  static void store_even_odd_exact(Bf16* p, F even, F odd) {  // values that bf16 represents
    const I low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xAAAAAAAA, low, _mm512_castps_si512(odd)));
  }
  static F round_to_bf16(F x) { return upper_half(nearest_bf16(x)); }
  static void load_even_odd(const float* p, F* even, F* odd) {
    const I indices = _mm512_slli_epi32(lanes(), 1);
    const F x = loadu(p), y = loadu(p + width);
    *even = _mm512_permutex2var_ps(x, indices, y);
    *odd = _mm512_permutex2var_ps(x, _mm512_or_si512(indices, _mm512_set1_epi32(1)), y);
  }
  static void store_even_odd(float* p, F even, F odd) {
    const F x = _mm512_unpacklo_ps(even, odd), y = _mm512_unpackhi_ps(even, odd);  // of each 128 bits
    const F low = _mm512_shuffle_f32x4(x, y, 0x44), high = _mm512_shuffle_f32x4(x, y, 0xEE);
    storeu(p, _mm512_shuffle_f32x4(low, low, 0xD8)), storeu(p + width, _mm512_shuffle_f32x4(high, high, 0xD8));
  }
  static F interleave(const Bf16* first, const Bf16* second) {  // pairs of bf16, first in the lower half of a lane
    const I low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    const I high = _mm512_castps_si512(loadu(second));
    return _mm512_castsi512_ps(_mm512_or_si512(low, high));
  }
  static F canonical_nan(F x) {  // any NaN -> the quiet NaN with a lower half of zeros
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), set1(__builtin_nanf("")));
  }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F zero() { return _mm512_setzero_ps(); }
  static F local_zero() {  // the compiler holds it in no register across the steps of a loop
    F x = _mm512_setzero_ps();
    __asm__ volatile("" : "+v"(x));
    return x;
  }
  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
  static F fms(F x, F y, F z) { return _mm512_fmsub_ps(x, y, z); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }  // y if either is NaN
  static F min(F x, F y) { return _mm512_min_ps(x, y); }  // y if either is NaN
  static F abs(F x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F neg_abs(F x) { return _mm512_or_ps(x, _mm512_set1_ps(-0.0f)); }
  static F where_negative(F x, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), no, yes);
  }
  static F where_less(F x, F y, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), no, yes);
  }
  static F where_positive(F x, F y) {  // x > 0 ? y : 0
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ), y);
  }
  static F times_power_of_two(F x, F n) {  // n integral, the product a normal value
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
  }

  static I set1(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static I lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static I add(I x, I y) { return _mm512_add_epi32(x, y); }
  static I mul(I x, I y) { return _mm512_mullo_epi32(x, y); }
  template <int N>
  static I xor_shift(I x) {
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, N));
  }
  static F where_at_least(I x, I bound, F y) {  // unsigned x >= bound ? y : 0
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(x, bound), y);
  }

  // sums[n] += the sum over lanes of x[n], n < N. Reads and writes whole groups of sum_group floats. Four vectors
  // become one, which holds their sums over 128 bits' lanes, and four of those become one: 3 operations per sum.
  static constexpr int sum_group = 16;
  template <int N>
  static inline __attribute__((always_inline)) void add_sums(const F (&x)[N], float* sums) {
#pragma GCC unroll 64
    for (int n = 0; n < N; n += 16) {
      const F low = add_blocks(add_lanes(x, n), add_lanes(x, n + 4)),
              high = add_blocks(add_lanes(x, n + 8), add_lanes(x, n + 12));
      store(sums + n, add(load(sums + n), add_blocks(low, high)));
    }
  }
  static double reduce_add(F x) {  // over lanes, in fp64
    return _mm512_reduce_add_pd(
        _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
  }

  static F where_below(I x, I bound, F yes, F no) {  // unsigned x < bound ? yes : no
    return _mm512_mask_blend_ps(_mm512_cmplt_epu32_mask(x, bound), no, yes);
  }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }  // over lanes
  template <int bit>
  static F where_reversed_lane(F yes, F no) {  // yes in the lanes n for which width - 1 - n has this bit
    constexpr __mmask16 mask = bit == 8 ? 0x00FF : bit == 4 ? 0x0F0F : bit == 2 ? 0x3333 : 0x5555;
    return _mm512_mask_blend_ps(mask, no, yes);
  }
  static void transpose(F* x) {  // of `width` rows, in place
    F y[16], z[16];
#pragma GCC unroll 8
    for (int n = 0; n < 16; n += 2) {
      y[n] = _mm512_unpacklo_ps(x[n], x[n + 1]);
      y[n + 1] = _mm512_unpackhi_ps(x[n], x[n + 1]);
    }
#pragma GCC unroll 8
    for (int n = 0; n < 16; n += 4) {  // z[n + c]: columns c, 4 + c, 8 + c, 12 + c of rows n .. n + 3
      z[n] = _mm512_shuffle_ps(y[n], y[n + 2], 0x44);
      z[n + 1] = _mm512_shuffle_ps(y[n], y[n + 2], 0xEE);
      z[n + 2] = _mm512_shuffle_ps(y[n + 1], y[n + 3], 0x44);
      z[n + 3] = _mm512_shuffle_ps(y[n + 1], y[n + 3], 0xEE);
    }
#pragma GCC unroll 8
    for (int c = 0; c < 4; ++c) {
      const F even0 = _mm512_shuffle_f32x4(z[c], z[c + 4], 0x88), odd0 = _mm512_shuffle_f32x4(z[c], z[c + 4], 0xDD);
      const F even1 = _mm512_shuffle_f32x4(z[c + 8], z[c + 12], 0x88);
      const F odd1 = _mm512_shuffle_f32x4(z[c + 8], z[c + 12], 0xDD);
      x[c] = _mm512_shuffle_f32x4(even0, even1, 0x88);
      x[c + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
      x[c + 8] = _mm512_shuffle_f32x4(even0, even1, 0xDD);
      x[c + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xDD);
    }
  }

 private:
  // Lane 4 b + c: the sum over lanes of block b, of 4 lanes, of x[n + c]; zeros for x beyond N.
  template <int N>
  static inline __attribute__((always_inline)) F add_lanes(const F (&x)[N], int n) {
    const F x0 = n < N ? x[n] : zero(), x1 = n + 1 < N ? x[n + 1] : zero();
    const F x2 = n + 2 < N ? x[n + 2] : zero(), x3 = n + 3 < N ? x[n + 3] : zero();
    const __m512d y = _mm512_castps_pd(add(_mm512_unpacklo_ps(x0, x1), _mm512_unpackhi_ps(x0, x1)));
    const __m512d z = _mm512_castps_pd(add(_mm512_unpacklo_ps(x2, x3), _mm512_unpackhi_ps(x2, x3)));
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(y, z)), _mm512_castpd_ps(_mm512_unpackhi_pd(y, z)));
  }
  // Blocks of 4 lanes: x0 + x1, x2 + x3, y0 + y1, y2 + y3.
  static F add_blocks(F x, F y) { return add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD)); }
  static I nearest_bf16(F x) {  // in the upper halves, ties to even; NaN stays NaN if its lower half is zeros
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  }
  static F upper_half(I bits) {
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
};

}  // namespace
