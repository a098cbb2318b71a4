// int8 on 512-bit vectors: what AVX-512, VNNI and AMX share.
#pragma once

#include "simd/avx512.h"

#include "linear_packed/multiply.h"

namespace {

struct Int8Avx512 {
  using A = __m512i;
  using W = __m512i;
  static constexpr bool int8 = true;
  static constexpr int x_bytes = 4;
  static constexpr int rows = 12, vectors = 2, bytes = 16;

  static A zero() { return _mm512_setzero_si512(); }
  static A plus(A x, A y) { return _mm512_add_epi32(x, y); }
  static A load(const float* p) { return _mm512_load_si512(p); }
  static void store(float* p, A x) { _mm512_store_si512(p, x); }
  static W weights(const char* w) { return _mm512_loadu_si512(w); }
  static W broadcast(const char* x) { return _mm512_castps_si512(_mm512_set1_ps(*reinterpret_cast<const float*>(x))); }
  static __m512 subtract_zero_point(A sum, int32_t zero_point, const int32_t* weight_sum) {
    const A offset = _mm512_mullo_epi32(_mm512_set1_epi32(zero_point), _mm512_loadu_si512(weight_sum));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
  }
  static void quantise(const __m512* x, int32_t zero_point, uint8_t* to) {
    const A q = _mm512_add_epi32(_mm512_cvtps_epi32(x[0]), _mm512_set1_epi32(zero_point));  // >= 0
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(q));
  }
};

}  // namespace
