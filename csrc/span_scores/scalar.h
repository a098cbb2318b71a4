// The readable truth of the span kernels: one loop a symbol, no blocking, sums in fp64 where they
// are local. Every other instruction set must agree.
#pragma once

#include "dropout.h"
#include "glimodern/span.h"

namespace {

inline float span_element(const glimodern::SpanInputs& in, int64_t i, int64_t k, int64_t h) {
  float x = in.a[i * in.hidden + h] + in.b[(i + k) * in.hidden + h];
  x = x < 0.0f ? 0.0f : x;  // keeps NaN
  if (!in.dropout) return x;
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + k), in.seed);
  return mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below ? x * in.keep_scale : 0.0f;
}

}  // namespace
