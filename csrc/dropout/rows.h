// Dropout of rows, for every vector class V (csrc/simd/).
#pragma once

#include "dropout_mask.h"

namespace {

template <class V>
void drop_rows(const glimodern::DropoutRows& in, int64_t first, int64_t last) {
  using I = typename V::I;
  const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden), threshold = V::set1(in.dropout.threshold);
  const float keep_scale = static_cast<float>(in.dropout.keep_scale);
  const auto scale = V::set1(keep_scale);
  for (int64_t r = first; r < last; ++r) {
    const uint32_t key = dropout_key(static_cast<uint64_t>(r), in.dropout.seed);
    const float* x = in.x + r * in.columns;
    float* y = in.y + r * in.columns;
    I counter = column_counters<V>(key, 0);
    int64_t h = 0;
    for (; h + V::width <= in.columns; h += V::width) {
      V::storeu(y + h, V::where_at_least(mix32_lanes<V>(counter), threshold, V::mul(scale, V::loadu(x + h))));
      counter = V::add(counter, step);
    }
    for (; h < in.columns; ++h) y[h] = dropout_keeps(key, h, in.dropout.threshold) ? x[h] * keep_scale : 0.0f;
  }
}

}  // namespace
