// e^x of a vector class V.
#pragma once

namespace {

// e^x for x <= 0 (and for the few units of rounding above), relative error below 2 ulp; 0 below -87.3 (fp32's smallest
// normal number); NaN stays NaN. e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2, and Taylor's series to r^7.
template <class V>
typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(V::set1(-87.3f), x);
  const F n = V::round(V::mul(clamped, V::set1(1.44269504f)));
  F r = V::fma(n, V::set1(-0.693359375f), clamped);  // ln 2 = 0.693359375 - 2.12194440e-4: exact, then the rest
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  constexpr float terms[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
  F y = V::set1(1.0f / 5040.0f);
#pragma GCC unroll 8
  for (float term : terms) y = V::fma(y, r, V::set1(term));
  y = V::times_power_of_two(y, n);
  return V::where_less(x, V::set1(-87.3f), V::zero(), y);
}

// 2^x for x <= 0 (and for the few units of rounding above) as softmax needs it: relative error below 1.5 ulp, 0 below
// -126.5; NaN stays NaN. 2^x = 2^n 2^r, n = round(x), |r| <= 1/2, and the polynomial of degree 5 with the smallest
// relative error among those exact at 0 (9e-8). n >= -127, where r = 0 and 2^-127 comes out as 0.
template <class V>
typename V::F exp2_weight(typename V::F x) {
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

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// e^x of the same kind: absolute error below 2 ulp of 1, relative error below (|x| + 2) ulp.
template <class V>
typename V::F exp_weight(typename V::F x) {
  return exp2_weight<V>(V::mul(x, V::set1(kLog2E)));
}

}  // namespace
