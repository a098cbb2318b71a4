// Dropout of rows, for every vector class V (csrc/simd/).
#pragma once

#include "dropout.h"
#include "glimodern/dropout.h"

namespace {

template <class V>
void drop_rows(const glimodern::DropoutRows& in, int64_t first, int64_t last) {
  using I = typename V::I;
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden), bound = V::set1(in.drop_below);
  const auto scale = V::set1(in.scale);
  for (int64_t r = first; r < last; ++r) {
    const uint32_t key = dropout_key(static_cast<uint64_t>(r), in.seed);
    const float* x = in.x + r * in.columns;
    float* y = in.y + r * in.columns;
    I counter = column_counters<V>(key, 0);
    int64_t h = 0;
    for (; h + V::width <= in.columns; h += V::width) {
      V::storeu(y + h, V::where_at_least(mix32_lanes<V>(counter), bound, V::mul(scale, V::loadu(x + h))));
      counter = V::add(counter, step);
    }
    for (; h < in.columns; ++h) {
      const bool keep = mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below;
      y[h] = keep ? x[h] * in.scale : 0.0f;
    }
  }
}

}  // namespace
