// GeGLU, for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include <type_traits>

#include "geglu/kernels.h"
#include "simd/normal_cdf.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

// Phi(x) and *density = phi(x) to the precision of the storage type T.
template <class V, class T>
inline __attribute__((always_inline)) typename V::F cdf_of(typename V::F x, typename V::F* density) {
  if constexpr (std::is_same_v<T, Bf16>) return normal_cdf_for_bf16<V>(x, density);
  return normal_cdf<V>(x, density);
}

template <class V, class T>
void forward(const glimodern::Geglu<T>& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  for (int64_t row = begin; row < end; ++row) {
    const T* a = in.x + row * 2 * in.width;
    const T* b = a + in.width;
    T* y = in.out + row * in.width;
    for_each_vector<V>(in.width, [=](int64_t j, auto io) {
      F density;
      const F x = io.load(a + j);
      const F gelu = V::mul(x, cdf_of<V, T>(x, &density));
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
    for_each_vector<V>(in.width, [=](int64_t j, auto io) {
      F density;
      const F x = io.load(a + j), dy = io.load(grad + j);
      const F cdf = cdf_of<V, T>(x, &density);
      io.store(da + j, V::mul(V::mul(dy, io.load(b + j)), V::fma(x, density, cdf)));
      io.store(db + j, V::mul(dy, V::mul(x, cdf)));
    });
  }
}

}  // namespace
