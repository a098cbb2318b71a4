// The exponential function for every vector class V (csrc/simd/).
#pragma once

#include <initializer_list>

namespace {

// e^x for x <= 0, relative error below 2 ulp; 0 below -87.3 (fp32's smallest normal number).
// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2, and Taylor's series to r^7.
template <class V>
typename V::F exp_nonpositive(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(V::set1(-87.3f), x);
  const F n = V::round(V::mul(clamped, V::set1(1.44269504f)));
  F r = V::fma(n, V::set1(-0.693359375f), clamped);  // ln 2 = 0.693359375 - 2.12194440e-4: exact, then the rest
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  F y = V::set1(1.0f / 5040.0f);
  for (float term : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f})
    y = V::fma(y, r, V::set1(term));
  y = V::times_power_of_two(y, n);
  return V::where_less(x, V::set1(-87.3f), V::zero(), y);
}

}  // namespace
