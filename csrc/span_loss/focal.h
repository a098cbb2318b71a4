// The focal loss of negatives, for every vector class V (csrc/simd/). Formulas: focal_point() in scalar.cpp.
#pragma once

#include "glimodern/span.h"
#include "simd/exp.h"

namespace {

// log(1 + e) for 0 <= e <= 1, relative error a few ulp: 2 atanh(q), q = e / (2 + e) <= 1/3, odd series to q^15.
template <class V>
typename V::F log1p_unit(typename V::F e) {
  using F = typename V::F;
  const F q = V::div(e, V::add(V::set1(2.0f), e));
  const F q2 = V::mul(q, q);
  F y = V::set1(2.0f / 15.0f);
  for (float term : {2.0f / 13.0f, 2.0f / 11.0f, 2.0f / 9.0f, 2.0f / 7.0f, 2.0f / 5.0f, 2.0f / 3.0f})
    y = V::fma(y, q2, V::set1(term));
  return V::fma(V::mul(y, q2), q, V::add(q, q));
}

enum class Power { zero, two, any };

template <class V, Power kPower>
typename V::F focal_vector(typename V::F x, float gamma, typename V::F* slope) {
  using F = typename V::F;
  const F zero = V::zero(), one = V::set1(1.0f);
  const F e = exp_nonpositive<V>(V::neg_abs(x));
  const F log1p_e = log1p_unit<V>(e);
  const F softplus = V::add(V::max(zero, x), log1p_e);
  const F inverse = V::div(one, V::add(one, e));
  const F tail = V::mul(e, inverse);
  const F s = V::where_negative(x, tail, inverse);
  if (kPower == Power::zero) {
    *slope = s;
    return softplus;
  }
  const F rest = V::where_negative(x, inverse, tail);
  const F power = kPower == Power::two ? V::mul(s, s)
                                       : exp_nonpositive<V>(V::mul(V::set1(gamma), V::sub(V::min(zero, x), log1p_e)));
  *slope = V::mul(power, V::fma(V::mul(V::set1(gamma), rest), softplus, s));
  return V::mul(power, softplus);
}

template <class V, Power kPower>
double focal_row(float* z, int64_t n, const glimodern::FocalParams& params, bool with_grad) {
  using F = typename V::F;
  const F weight = V::set1(static_cast<float>(params.negative_weight));
  const float gamma = static_cast<float>(params.gamma);
  double total = 0.0;
  int64_t j = 0;
  while (j + V::width <= n) {
    F partial = V::zero();  // of at most 16 vectors: short fp32 sums, added up in fp64
    for (int step = 0; step < 16 && j + V::width <= n; ++step, j += V::width) {
      F slope;
      partial = V::add(partial, focal_vector<V, kPower>(V::loadu(z + j), gamma, &slope));
      if (with_grad) V::storeu(z + j, V::mul(weight, slope));
    }
    total += V::reduce_add(partial);
  }
  if (j < n) {
    alignas(64) float rest[V::width];
    for (int lane = 0; lane < V::width; ++lane) rest[lane] = j + lane < n ? z[j + lane] : -__builtin_inff();
    F slope;
    total += V::reduce_add(focal_vector<V, kPower>(V::load(rest), gamma, &slope));
    V::store(rest, V::mul(weight, slope));
    for (int lane = 0; with_grad && j + lane < n; ++lane) z[j + lane] = rest[lane];
  }
  return params.negative_weight * total;
}

template <class V>
double focal_negatives(float* z, int64_t n, const glimodern::FocalParams& params, bool with_grad) {
  if (params.gamma == 0.0) return focal_row<V, Power::zero>(z, n, params, with_grad);
  if (params.gamma == 2.0) return focal_row<V, Power::two>(z, n, params, with_grad);
  return focal_row<V, Power::any>(z, n, params, with_grad);
}

}  // namespace
