// Elements of span vectors, for the scalar kernels. S: the storage type of a, b and u; Acc: the accumulator type.
#pragma once

#include "bf16.h"
#include "dropout_mask.h"
#include "glimodern/span.h"

namespace {

template <class S, class Acc>
Acc element(const void* matrix, int64_t at) {
  return widen(static_cast<const S*>(matrix)[at]);
}

template <class S, class Acc>
Acc span_element(const glimodern::SpanInputs& in, int64_t i, int64_t k, int64_t h) {
  Acc x = element<S, Acc>(in.a, i * in.hidden + h) + element<S, Acc>(in.b, (i + k) * in.hidden + h);
  x = x < 0 ? 0 : x;  // keeps NaN
  if (!in.dropout.enabled) return x;
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + k), in.dropout.seed);
  return dropout_keeps(key, h, in.dropout.threshold) ? x * static_cast<Acc>(in.dropout.keep_scale) : 0;
}

}  // namespace
