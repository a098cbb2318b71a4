// GeGLU, for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include "geglu/kernels.h"
#include "simd/normal_cdf.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

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
    for_each_vector<V>(in.width, [=](int64_t j, auto io) {
      F density;
      const F x = io.load(a + j), dy = io.load(grad + j);
      const F cdf = normal_cdf<V>(x, &density);
      io.store(da + j, V::mul(V::mul(dy, io.load(b + j)), V::fma(x, density, cdf)));
      io.store(db + j, V::mul(dy, V::mul(x, cdf)));
    });
  }
}

}  // namespace
