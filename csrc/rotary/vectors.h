// Rotary positions for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include "rotary/kernels.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

template <class V, class T>
void turn(const glimodern::Rotary<T>& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  const glimodern::RotaryShape shape = in.shape;
  const int64_t half = shape.half;
  T* y = in.y + begin * shape.groups * shape.heads * 2 * half;
  for (int64_t token = begin; token < end; ++token) {
    const float* cos = in.cos + token * half;
    const float* sin = in.sin + token * half;
    for (int64_t group = 0; group < shape.groups; ++group) {
      const T* x = in.x + token * shape.token_stride + group * shape.group_stride;
      for (int64_t head = 0; head < shape.heads; ++head, x += shape.head_stride, y += 2 * half) {
        for_row<V>(half, [=](int64_t j, auto io) {
          const F c = io.load(cos + j), angle_sin = io.load(sin + j);
          const F s = shape.inverse ? V::sub(V::zero(), angle_sin) : angle_sin;
          const F x1 = io.load(x + j), x2 = io.load(x + half + j);
          io.store(y + j, V::sub(V::mul(x1, c), V::mul(x2, s)));
          io.store(y + half + j, V::fma(x1, s, V::mul(x2, c)));
        });
      }
    }
  }
}

}  // namespace
