// 2^x for the AMX softmax, to the precision of bf16.
#pragma once

#include "attention_varlen/amx/tiles.h"

namespace glimodern {
namespace {

// 2^(k / 32), and the slope from there to 2^((k + 1) / 32) with the smallest relative error among lines that are exact
// at the left end (4e-5).
struct Exp2Table {
  alignas(64) float value[32], slope[32];
  constexpr Exp2Table() : value(), slope() {
    double power = 1.0;
    for (int k = 0; k < 32; ++k, power *= 1.0218971486541166) {
      value[k] = static_cast<float>(power);
      slope[k] = static_cast<float>(power * kSlope);
    }
  }
  static constexpr double kSlope = 0.699395;
};
constexpr Exp2Table kExp2Table;

// x[n] <- 2^x[n] with relative error below 5e-5, less than the rounding of bf16; 0 for -inf.
//
// Domain: x < 128, where 2^x overflows. With x = i + k / 32 + rest, 0 <= rest < 1 / 32, the sum i + k / 32 + 1.5 * 2^18
// is exact and its last 5 bits are k if |x| < 2^17. For x <= -2^17, k is wrong, but 2^i underflows to 0 anyway.
//
// While tiles are multiplied, one of the two vector ports neither multiplies, rounds nor compares, but it adds and
// permutes: hence the tables. The N values advance in lockstep, since the scheduler is too short to overlap them.
template <int N>
inline __attribute__((always_inline)) void exp2_tile(F* x) {
  const F value0 = V::load(kExp2Table.value), value1 = V::load(kExp2Table.value + 16);
  const F slope0 = V::load(kExp2Table.slope), slope1 = V::load(kExp2Table.slope + 16);
  const F bias = V::set1(1.5f * (1 << 18));  // its last bit is worth 1 / 32
  F rest[N], y[N];
  __m512i k[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) rest[n] = _mm512_reduce_ps(x[n], 5 << 4 | _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) k[n] = _mm512_castps_si512(V::add(V::sub(x[n], rest[n]), bias));
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    y[n] = V::fma(_mm512_permutex2var_ps(slope0, k[n], slope1), rest[n], _mm512_permutex2var_ps(value0, k[n], value1));
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) x[n] = _mm512_scalef_ps(y[n], x[n]);
}

}  // namespace
}  // namespace glimodern
