// The row kernels, for every vector class V (csrc/simd/) and storage type T of a and b. No row is aligned: a, b and x
// are PyTorch's memory, of any width. Unnamed namespace: each instruction set's file compiles its own copy.
#pragma once

#include "bf16.h"
#include "dropout_mask.h"
#include "glimodern/span_vectors.h"

namespace {

using glimodern::SpanRows;

template <class V, class T>
void hidden_row(const SpanRows& in, int64_t row, float* x) {
  const int64_t start = in.start[row], end = in.end[row];
  int64_t h = 0;
  if (end < 0) {
    for (; h + V::width <= in.hidden; h += V::width) V::storeu(x + h, V::zero());
    for (; h < in.hidden; ++h) x[h] = 0.0f;
    return;
  }
  const T* a = static_cast<const T*>(in.a) + start * in.hidden;
  const T* b = static_cast<const T*>(in.b) + end * in.hidden;
  const float keep_scale = static_cast<float>(in.dropout.keep_scale);
  const uint32_t key = dropout_key(static_cast<uint64_t>(start * in.max_width + end - start), in.dropout.seed);
  if (in.dropout.enabled) {
    using I = typename V::I;
    I counter = column_counters<V>(key, 0);
    const I step = V::set1(static_cast<uint32_t>(V::width) * kGolden);
    const I threshold = V::set1(in.dropout.threshold);
    const auto scale = V::set1(keep_scale);
    for (; h + V::width <= in.hidden; h += V::width) {
      const auto kept = V::mul(scale, V::max(V::zero(), V::add(V::loadu(a + h), V::loadu(b + h))));
      V::storeu(x + h, V::where_at_least(mix32_lanes<V>(counter), threshold, kept));
      counter = V::add(counter, step);
    }
  } else {
    for (; h + V::width <= in.hidden; h += V::width) {
      V::storeu(x + h, V::max(V::zero(), V::add(V::loadu(a + h), V::loadu(b + h))));
    }
  }
  for (; h < in.hidden; ++h) {
    float value = widen(a[h]) + widen(b[h]);
    value = value < 0.0f ? 0.0f : value;  // keeps NaN
    if (in.dropout.enabled) value = dropout_keeps(key, h, in.dropout.threshold) ? value * keep_scale : 0.0f;
    x[h] = value;
  }
}

template <class V>
void hidden_row(const SpanRows& in, int64_t row, float* x) {
  if (in.dtype == glimodern::Dtype::bf16) return hidden_row<V, Bf16>(in, row, x);
  hidden_row<V, float>(in, row, x);
}

template <class V>
void hidden_slice_backward(const SpanRows& in, const float* x, const float* dx, int64_t column, int64_t columns,
                           float* da, float* db) {
  const float scale = in.dropout.enabled ? static_cast<float>(in.dropout.keep_scale) : 1.0f;
  const auto factor = V::set1(scale);
  for (int64_t row = 0; row < in.rows; ++row) {
    if (in.end[row] < 0) continue;
    const float* value = x + row * in.hidden + column;
    const float* grad = dx + row * in.hidden + column;
    float* start = da + in.start[row] * in.hidden + column;
    float* end = db + in.end[row] * in.hidden + column;
    int64_t h = 0;
    for (; h + V::width <= columns; h += V::width) {
      const auto passed = V::where_positive(V::loadu(value + h), V::mul(factor, V::loadu(grad + h)));
      V::storeu(start + h, V::add(V::loadu(start + h), passed));
      V::storeu(end + h, V::add(V::loadu(end + h), passed));
    }
    for (; h < columns; ++h) {
      if (!(value[h] > 0.0f)) continue;
      start[h] += grad[h] * scale;
      end[h] += grad[h] * scale;
    }
  }
}

}  // namespace
