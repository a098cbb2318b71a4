// GeGLU for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include <initializer_list>

#include "geglu/kernels.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

// Phi(x), of relative error below 5 * 2^-23 down to x = -13, near fp32's smallest normal number, where 1 + erf(x) would
// have no digit left; 0 below -13.1. density: phi(x), of relative error below 2 * 2^-23; 0 beyond 13.1. NaN gives NaN
// or 0.
//
// Phi(-z) = e^(-z^2 / 2) R(z) for z >= 0. R(z) = erfcx(z / sqrt(2)) / 2 falls slowly from 1/2, and is here the
// quotient of polynomials of degrees 4 and 5 with the least largest relative error on [0, 13.3]: 8.1e-9 with these
// fp32 coefficients. All are positive, so that nothing cancels. e^t = 2^n e^r with n = round(t / ln 2), and e^r = 1 + r
// + r^2 q(r), q of degree 4, within 4.9e-9; r also takes up the rounding error of t = -z^2 / 2. The coefficients are
// our own: weighted least squares with Lawson's weights, then a search among neighbouring fp32 numbers.
template <class V>
inline __attribute__((always_inline)) typename V::F normal_cdf(typename V::F x, typename V::F* density) {
  using F = typename V::F;
  const F one = V::set1(1.0f), end = V::set1(13.1f);
  const F z = V::min(end, V::abs(x));
  const F minus_half_z = V::mul(V::set1(-0.5f), z);
  const F t = V::mul(minus_half_z, z);
  const F n = V::round(V::mul(t, V::set1(1.44269504f)));
  F r = V::fma(n, V::set1(-0.693359375f), t);  // ln 2 = 0.693359375 - 2.12194440e-4: exact, then the rest
  r = V::fma(n, V::set1(2.12194440e-4f), r);
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

template <class V, class T>
void forward(const glimodern::Geglu<T>& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = in.x + row * 2 * in.width;
    const T* b = a + in.width;
    T* y = in.out + row * in.width;
    for_row<V>(in.width, [=](int64_t j, auto io) {
      F density;
      const F x = io.load(a + j);
      const F gelu = V::mul(x, normal_cdf<V>(x, &density));
      io.store(y + j, V::mul(gelu, io.load(b + j)));
    });
  }
}

template <class V, class T>
void backward(const glimodern::Geglu<T>& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = in.x + row * 2 * in.width;
    const T* b = a + in.width;
    const T* grad = in.dy + row * in.width;
    T* da = in.out + row * 2 * in.width;
    T* db = da + in.width;
    for_row<V>(in.width, [=](int64_t j, auto io) {
      F density;
      const F x = io.load(a + j), dy = io.load(grad + j);
      const F cdf = normal_cdf<V>(x, &density);
      io.store(da + j, V::mul(V::mul(dy, io.load(b + j)), V::fma(x, density, cdf)));
      io.store(db + j, V::mul(dy, V::mul(x, cdf)));
    });
  }
}

}  // namespace
