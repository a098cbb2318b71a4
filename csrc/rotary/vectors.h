// Rotary position embeddings, for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include "rotary/kernels.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

constexpr int64_t kAngles = 128;  // of a token in scratch at a time

template <class V, class T>
void rotate(const glimodern::Rotary<T>& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  const glimodern::RotaryShape shape = in.shape;
  const int64_t half = shape.half;
  alignas(64) float cos[kAngles], sin[kAngles];  // in lane order
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t first = 0; first < half; first += kAngles) {
      const int64_t pairs = half - first < kAngles ? half - first : kAngles;
      for_each_vector<V>(pairs, [&](int64_t j, auto io) {
        const F s = io.load(in.sin + token * half + first + j);
        V::store(cos + j, io.load(in.cos + token * half + first + j));
        V::store(sin + j, shape.inverse ? V::sub(V::zero(), s) : s);
      });
      T* y = in.y + token * shape.groups * shape.heads * 2 * half + first;
      for (int64_t group = 0; group < shape.groups; ++group) {
        const T* x = in.x + token * shape.token_stride + group * shape.group_stride + first;
        for (int64_t head = 0; head < shape.heads; ++head, x += shape.head_stride, y += 2 * half) {
          for_each_vector<V>(pairs, [&](int64_t j, auto io) {
            const F c = V::load(cos + j), s = V::load(sin + j);
            const F x1 = io.load(x + j), x2 = io.load(x + half + j);
            io.store(y + j, V::sub(V::mul(x1, c), V::mul(x2, s)));
            io.store(y + half + j, V::fma(x1, s, V::mul(x2, c)));
          });
        }
      }
    }
  }
}

}  // namespace
