// The normal distribution function, for every vector class V (csrc/simd/).
#pragma once

#include <initializer_list>

#include "simd/exp.h"

namespace {

// Returns Phi(x) with relative error below 5 * 2^-23 down to x = -13, near fp32's smallest normal value, where
// 1 + erf(x) would have no correct digit; returns 0 below -13.1. Sets *density to phi(x) with relative error below
// 2 * 2^-23; 0 beyond +-13.1. NaN gives NaN or 0.
//
// Phi(-z) = e^(-z^2 / 2) R(z) for z >= 0. R(z) = erfcx(z / sqrt(2)) / 2 falls slowly from 1/2. It is approximated by
// the quotient of polynomials of degrees 4 and 5 with the smallest maximum relative error on [0, 13.3]: 8.1e-9 with
// these fp32 coefficients. All coefficients are positive, so no digits cancel. e^t = 2^n e^r with n = round(t / ln 2)
// and e^r = 1 + r + r^2 q(r), q of degree 4, within 4.9e-9. r includes the rounding error of t = -z^2 / 2. The
// coefficients are our own: weighted least squares with Lawson's weights, then a search among neighbouring fp32 values.
template <class V>
inline __attribute__((always_inline)) typename V::F normal_cdf(typename V::F x, typename V::F* density) {
  using F = typename V::F;
  const F one = V::set1(1.0f), end = V::set1(13.1f);
  const F z = V::min(end, V::abs(x));
  const F minus_half_z = V::mul(V::set1(-0.5f), z);
  const F t = V::mul(minus_half_z, z);
  const F n = V::round(V::mul(t, V::set1(kLog2E)));
  F r = V::fma(n, V::set1(-kLn2High), t);
  r = V::fma(n, V::set1(-kLn2Low), r);
  r = V::add(r, V::fms(minus_half_z, z, t));
  F e = V::set1(0.00138143206f);
  for (float c : {0.00836885162f, 0.0416684002f, 0.166665196f, 0.49999994f, 1.0f, 1.0f}) e = V::fma(e, r, V::set1(c));
  e = V::where_positive(V::sub(end, z), V::times_power_of_two(e, n));
  F p = V::set1(0.00402019685f);
  for (float c : {0.0399842151f, 0.181306928f, 0.435686499f, 0.5f}) p = V::fma(p, z, V::set1(c));
  F q = V::set1(0.0100769959f);
  for (float c : {0.100232944f, 0.464380771f, 1.19448483f, 1.66925788f, 1.0f}) q = V::fma(q, z, V::set1(c));
  const F tail = V::mul(e, V::div(p, q));
  *density = V::mul(V::set1(0.398942280f), e);
  return V::where_negative(x, tail, V::sub(one, tail));
}

// normal_cdf with relative error below 2^-15, for results that are rounded to bf16: degrees 2 and 3 for R(z), within
// 2.5e-5, and e^(-z^2 / 2) = 2^n 2^r with r = -z^2 log2(e) / 2 - n and a polynomial of degree 4, within 2.9e-6.
template <class V>
inline __attribute__((always_inline)) typename V::F normal_cdf_for_bf16(typename V::F x, typename V::F* density) {
  using F = typename V::F;
  const F one = V::set1(1.0f), end = V::set1(13.1f);
  const F z = V::min(end, V::abs(x));
  const F t = V::mul(V::mul(V::set1(-0.5f * kLog2E), z), z);
  const F n = V::round(t), r = V::sub(t, n);
  F e = V::set1(0.00958280734f);
  for (float c : {0.0559064278f, 0.240240994f, 0.693124194f, 1.0f}) e = V::fma(e, r, V::set1(c));
  e = V::where_positive(V::sub(end, z), V::times_power_of_two(e, n));
  F p = V::set1(0.061192248f);
  for (float c : {0.275512397f, 0.5f}) p = V::fma(p, z, V::set1(c));
  F q = V::set1(0.153190777f);
  for (float c : {0.6960513f, 1.34941006f, 1.0f}) q = V::fma(q, z, V::set1(c));
  const F tail = V::mul(e, V::div(p, q));
  *density = V::mul(V::set1(0.398942280f), e);
  return V::where_negative(x, tail, V::sub(one, tail));
}

}  // namespace
