// AVX-512 BF16: dot products of bf16 pairs, and rounding to bf16.
#pragma once

#include "simd/avx512.h"

namespace {

// Rounds to bf16 by one instruction, which treats values below 2^-126 as 0.
struct Avx512Bf16 : Avx512 {
  using Avx512::storeu;
  static void storeu(Bf16* p, F x) {
    const __m256bh packed = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(p, &packed, sizeof packed);
  }
  static void storeu2(Bf16* p, F x, F y) {
    const __m512bh packed = _mm512_cvtne2ps_pbh(y, x);
    __builtin_memcpy(p, &packed, sizeof packed);
  }
  using Avx512::storeu2;
};

// Lanes of fma's x and y hold two bf16 values each, so that csrc/simd/gemm.h multiplies pairs as it multiplies floats.
struct Avx512Bf16Pairs : Avx512Bf16 {
  static F fma(F x, F y, F z) { return _mm512_dpbf16_ps(z, pairs(x), pairs(y)); }  // x0 y0 + x1 y1 + z

 private:
  static __m512bh pairs(F x) {
    __m512bh y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
  }
};

}  // namespace
