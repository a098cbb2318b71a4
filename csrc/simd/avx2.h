// Eight fp32 lanes: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "bf16.h"

namespace {

struct Avx2 {
  using F = __m256;   // floats
  using I = __m256i;  // uint32 lanes
  static constexpr int width = 8;
  // Register tile of the span scores: spans by number of types. spans * types accumulators, the shorter side, one
  // vector of the longer side and a zero fit 16 registers. At least 8 accumulators hide the latency of 2 FMAs per
  // cycle.
  static constexpr int max_tile_types = 5;
  static constexpr int tile_spans[max_tile_types + 1] = {0, 8, 6, 3, 2, 2};
  // Span scores go through so many columns at a time: the u of a tile of types and the packed b stay in L1.
  static constexpr int64_t max_score_columns = 384;
  static constexpr bool score_b_in_place = false;
  static constexpr int grad_rows = 6, grad_vectors = 2;
  static constexpr int gemm_rows = 6, gemm_vectors = 2;  // register tile of simd/gemm.h

  static F load(const float* p) { return _mm256_load_ps(p); }
  static F loadu(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_store_ps(p, x); }
  static void storeu(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F loadu(const Bf16* p) {
    const I bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static void storeu(Bf16* p, F x) {
    const I bits = _mm256_srli_epi32(nearest_bf16(canonical_nan(x)), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  template <class T>
  static void storeu2(T* p, F x, F y) {
    storeu(p, x), storeu(p + width, y);
  }
  static void split8(F x, F y, F* first, F* second) { *first = x, *second = y; }  // a vector is one block of 8
  // Elements p[0 .. 16) by even and odd index. One operation per vector; loadu and storeu in memory order take two or
  // more. A NaN that is stored or rounded must have a lower half of zeros.
  static void load_even_odd(const Bf16* p, F* even, F* odd) {
    const I bits = _mm256_loadu_si256(reinterpret_cast<const I*>(p));
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    *odd = upper_half(bits);
  }
  static void store_even_odd(Bf16* p, F even, F odd) {
    const I low = _mm256_srli_epi32(nearest_bf16(even), 16);
    _mm256_storeu_si256(reinterpret_cast<I*>(p), _mm256_blend_epi16(low, nearest_bf16(odd), 0xAA));
  }
  static void store_even_odd_exact(Bf16* p, F even, F odd) {  // values that bf16 represents
    const I low = _mm256_srli_epi32(_mm256_castps_si256(even), 16);
    _mm256_storeu_si256(reinterpret_cast<I*>(p), _mm256_blend_epi16(low, _mm256_castps_si256(odd), 0xAA));
  }
  static F round_to_bf16(F x) { return upper_half(nearest_bf16(x)); }
  static void load_even_odd(const float* p, F* even, F* odd) {
    const F x = loadu(p), y = loadu(p + width);
    *even = in_order(_mm256_shuffle_ps(x, y, 0x88));
    *odd = in_order(_mm256_shuffle_ps(x, y, 0xDD));
  }
  static void store_even_odd(float* p, F even, F odd) {
    const F x = _mm256_unpacklo_ps(even, odd), y = _mm256_unpackhi_ps(even, odd);
    storeu(p, _mm256_permute2f128_ps(x, y, 0x20)), storeu(p + width, _mm256_permute2f128_ps(x, y, 0x31));
  }
  static F canonical_nan(F x) {  // any NaN -> the quiet NaN with a lower half of zeros
    return _mm256_blendv_ps(x, set1(__builtin_nanf("")), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F zero() { return _mm256_setzero_ps(); }
  static F local_zero() {  // the compiler holds it in no register across the steps of a loop
    F x = _mm256_setzero_ps();
    __asm__ volatile("" : "+x"(x));
    return x;
  }
  static F add(F x, F y) { return _mm256_add_ps(x, y); }
  static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F div(F x, F y) { return _mm256_div_ps(x, y); }
  static F fma(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
  static F fms(F x, F y, F z) { return _mm256_fmsub_ps(x, y, z); }
  static F max(F x, F y) { return _mm256_max_ps(x, y); }  // y if either is NaN
  static F min(F x, F y) { return _mm256_min_ps(x, y); }  // y if either is NaN
  static F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F neg_abs(F x) { return _mm256_or_ps(x, _mm256_set1_ps(-0.0f)); }
  static F where_negative(F x, F yes, F no) { return _mm256_blendv_ps(no, yes, x); }
  static F where_less(F x, F y, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, y, _CMP_LT_OQ)); }
  static F where_positive(F x, F y) {  // x > 0 ? y : 0
    return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_GT_OQ), y);
  }
  static F times_power_of_two(F x, F n) {  // n integral, the product a normal value
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }

  static I set1(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static I lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static I add(I x, I y) { return _mm256_add_epi32(x, y); }
  static I mul(I x, I y) { return _mm256_mullo_epi32(x, y); }
  template <int N>
  static I xor_shift(I x) {
    return _mm256_xor_si256(x, _mm256_srli_epi32(x, N));
  }
  static F where_at_least(I x, I bound, F y) {  // unsigned x >= bound ? y : 0
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(x, bound), x)), y);
  }

  // sums[n] += the sum over lanes of x[n], n < N. Reads and writes whole groups of sum_group floats.
  static constexpr int sum_group = 4;
  template <int N>
  static void add_sums(const F (&x)[N], float* sums) {
#pragma GCC unroll 64
    for (int n = 0; n < N; n += 4) {
      const F x1 = n + 1 < N ? x[n + 1] : zero(), x2 = n + 2 < N ? x[n + 2] : zero(),
              x3 = n + 3 < N ? x[n + 3] : zero();
      const F y = _mm256_hadd_ps(_mm256_hadd_ps(x[n], x1), _mm256_hadd_ps(x2, x3));
      const __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
      _mm_store_ps(sums + n, _mm_add_ps(_mm_load_ps(sums + n), z));
    }
  }
  static double reduce_add(F x) {  // over lanes, in fp64
    const __m256d y =
        _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    const __m128d z = _mm_add_pd(_mm256_castpd256_pd128(y), _mm256_extractf128_pd(y, 1));
    return _mm_cvtsd_f64(_mm_add_sd(z, _mm_unpackhi_pd(z, z)));
  }

  static F where_below(I x, I bound, F yes, F no) {  // unsigned x < bound ? yes : no
    return _mm256_blendv_ps(yes, no, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(x, bound), x)));
  }
  static float reduce_max(F x) {  // over lanes
    const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
  }
  template <int bit>
  static F where_reversed_lane(F yes, F no) {  // yes in the lanes n for which width - 1 - n has this bit
    constexpr int mask = bit == 4 ? 0x0F : bit == 2 ? 0x33 : 0x55;
    return _mm256_blend_ps(no, yes, mask);
  }
  static void transpose(F* x) {  // of `width` rows, in place
    F y[8], z[8];
#pragma GCC unroll 4
    for (int n = 0; n < 8; n += 2) {
      y[n] = _mm256_unpacklo_ps(x[n], x[n + 1]);
      y[n + 1] = _mm256_unpackhi_ps(x[n], x[n + 1]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 8; n += 4) {
      z[n] = _mm256_shuffle_ps(y[n], y[n + 2], 0x44);
      z[n + 1] = _mm256_shuffle_ps(y[n], y[n + 2], 0xEE);
      z[n + 2] = _mm256_shuffle_ps(y[n + 1], y[n + 3], 0x44);
      z[n + 3] = _mm256_shuffle_ps(y[n + 1], y[n + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      x[n] = _mm256_permute2f128_ps(z[n], z[n + 4], 0x20);
      x[n + 4] = _mm256_permute2f128_ps(z[n], z[n + 4], 0x31);
    }
  }

 private:
  static I nearest_bf16(F x) {  // in the upper halves, ties to even; NaN stays NaN if its lower half is zeros
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  }
  static F upper_half(I bits) {
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  static F in_order(F x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8)); }
};

}  // namespace
