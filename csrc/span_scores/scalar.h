// One element of a span's hidden vector, as the scalar kernels read it. S: how a, b and u are stored; W: the wide type.
#pragma once

#include "bf16.h"
#include "dropout.h"
#include "glimodern/span.h"

namespace {

template <class S, class W>
W element(const void* matrix, int64_t at) {
  return widen(static_cast<const S*>(matrix)[at]);
}

template <class S, class W>
W span_element(const glimodern::SpanInputs& in, int64_t i, int64_t k, int64_t h) {
  W x = element<S, W>(in.a, i * in.hidden + h) + element<S, W>(in.b, (i + k) * in.hidden + h);
  x = x < 0 ? 0 : x;  // keeps NaN
  if (!in.dropout) return x;
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + k), in.seed);
  return mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below ? x * static_cast<W>(in.keep_scale) : 0;
}

}  // namespace
