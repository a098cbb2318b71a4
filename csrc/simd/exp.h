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

// e^x for x <= 0 (and for the few units of rounding above) as softmax needs it: absolute error below 2 ulp of 1,
// relative error below (|x| + 2) ulp; 0 below -88.03; NaN stays NaN. e^x = 2^n 2^r, n = round(x / ln 2), |r| <= 1/2,
// and the polynomial of degree 6 with the smallest relative error (2e-9). n >= -127, where r = 0 and 2^-127 comes out
// as 0.
template <class V>
typename V::F exp_weight(typename V::F x) {
  using F = typename V::F;
  const F scaled = V::max(V::set1(-127.0f), V::mul(x, V::set1(1.44269504f)));
  const F n = V::round(scaled);
  const F r = V::sub(scaled, n);
  constexpr float terms[] = {1.339993090e-3f, 9.618489072e-3f, 5.550328642e-2f, 2.402264625e-1f, 6.931471825e-1f, 1.0f};
  F y = V::set1(1.534580952e-4f);
#pragma GCC unroll 8
  for (float term : terms) y = V::fma(y, r, V::set1(term));
  return V::times_power_of_two(y, n);
}

}  // namespace
