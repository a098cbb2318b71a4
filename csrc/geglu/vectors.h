// GeGLU for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include <initializer_list>

#include "geglu/kernels.h"
#include "simd/exp.h"
#include "simd/rows.h"

namespace {

// Phi(x), of relative error below 5 * 2^-23 down to fp32's smallest normal number (x = -13), where a formula 1 + erf(x)
// would have none left; 0 below. density: phi(x), of relative error below 2 * 2^-23. NaN gives NaN.
//
// Phi(-z) = e^(-z^2 / 2) R(z) for z >= 0. R(z) = erfcx(z / sqrt(2)) / 2 falls slowly from 1/2, and is here the
// quotient of polynomials of degrees 4 and 5 with the least largest relative error on [0, 13.3]: 8.1e-9 with these
// fp32 coefficients, which are our own (weighted least squares with Lawson's weights, then a search among neighbouring
// fp32 numbers). All are positive, so that nothing cancels. e^(-z^2 / 2) is corrected by the rounding error of z^2 / 2.
template <class V>
typename V::F normal_cdf(typename V::F x, typename V::F* density) {
  using F = typename V::F;
  const F z = V::min(V::set1(14.0f), V::abs(x));
  const F minus_half_z = V::mul(V::set1(-0.5f), z);
  const F square = V::mul(minus_half_z, z);
  const F rest = V::fma(minus_half_z, z, V::sub(V::zero(), square));
  const F e = exp_nonpositive<V>(square);
  const F corrected = V::fma(e, rest, e);
  F p = V::set1(0.00402019685f);
  for (float c : {0.0399842151f, 0.181306928f, 0.435686499f, 0.5f}) p = V::fma(p, z, V::set1(c));
  F q = V::set1(0.0100769959f);
  for (float c : {0.100232944f, 0.464380771f, 1.19448483f, 1.66925788f, 1.0f}) q = V::fma(q, z, V::set1(c));
  const F tail = V::mul(corrected, V::div(p, q));
  *density = V::mul(V::set1(0.398942280f), corrected);
  return V::where_negative(x, tail, V::sub(V::set1(1.0f), tail));
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
