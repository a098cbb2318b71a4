// 1 / (1 + e^-x), for every vector class V (csrc/simd/).
#pragma once

#include "simd/exp.h"

namespace {

// Relative error below 4 * 2^-23 down to x = -87.3; 0 below. NaN stays NaN. With e = e^-|x|, which cannot overflow:
// 1 / (1 + e) for x >= 0 and e / (1 + e) for x < 0.
template <class V>
inline __attribute__((always_inline)) typename V::F sigmoid(typename V::F x) {
  const auto one = V::set1(1.0f), e = exp_nonpositive<V>(V::neg_abs(x));
  return V::div(V::where_negative(x, e, one), V::add(one, e));
}

}  // namespace
