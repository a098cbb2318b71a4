// e^x and 2^x, for every vector class V.
#pragma once

namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
// ln 2 in two parts: n * kLn2High is exact for integers n of the ranges below.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// e^x for x <= 0, or above by a few units of rounding. Relative error below 2 ulp; 0 below -87.3 (fp32's smallest
// normal value); NaN stays NaN. e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the Taylor series to r^7.
template <class V>
typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(V::set1(-87.3f), x);
  const F n = V::round(V::mul(clamped, V::set1(kLog2E)));
  F r = V::fma(n, V::set1(-kLn2High), clamped);
  r = V::fma(n, V::set1(-kLn2Low), r);
  constexpr float terms[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
  F y = V::set1(1.0f / 5040.0f);
#pragma GCC unroll 8
  for (float term : terms) y = V::fma(y, r, V::set1(term));
  y = V::times_power_of_two(y, n);
  return V::where_less(x, V::set1(-87.3f), V::zero(), y);
}

// 2^x for softmax: x <= 0, or above by a few units of rounding. Relative error below 1.5 ulp; 0 below -126.5; NaN stays
// NaN. 2^x = 2^n 2^r with n = round(x), |r| <= 1/2, and the polynomial of degree 5 with the smallest relative error
// among those that are exact at 0 (9e-8). n >= -127, where r = 0 and 2^-127 becomes 0.
template <class V>
typename V::F exp2_softmax(typename V::F x) {
  using F = typename V::F;
  x = V::max(V::set1(-127.0f), x);
  const F n = V::round(x);
  const F r = V::sub(x, n);
  constexpr float terms[] = {9.671512689e-3f, 5.550733744e-2f, 2.402224208e-1f, 6.931469776e-1f, 1.0f};
  F y = V::set1(1.326472425e-3f);
#pragma GCC unroll 8
  for (float term : terms) y = V::fma(y, r, V::set1(term));
  return V::times_power_of_two(y, n);
}

// e^x for softmax, same domain. Absolute error below 2 ulp of 1, relative error below (|x| + 2) ulp.
template <class V>
typename V::F exp_softmax(typename V::F x) {
  return exp2_softmax<V>(V::mul(x, V::set1(kLog2E)));
}

}  // namespace
