// The counter-based dropout mask of glimodern/reference/span.py (dropout_keep), a row at a time.
//
// Element (row, h) is kept if mix32(key + h * kGolden) >= threshold, with key = dropout_key(row, seed). The row of a
// span is i * K + k, with i counted in the whole batch.
#pragma once

#include <cstdint>

#include "glimodern/dropout.h"

namespace {

constexpr uint32_t kGolden = 0x9E3779B9u;

inline uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

// mix32 of every lane of vector class V.
template <class V>
typename V::I mix32_lanes(typename V::I x) {
  x = V::mul(V::template xor_shift<16>(x), V::set1(0x7FEB352Du));
  x = V::mul(V::template xor_shift<15>(x), V::set1(0x846CA68Bu));
  return V::template xor_shift<16>(x);
}

// key + h * kGolden for columns h = column .. column + V::width - 1.
template <class V>
typename V::I column_counters(uint32_t key, int64_t column) {
  return V::add(V::set1(key + static_cast<uint32_t>(column) * kGolden), V::mul(V::lanes(), V::set1(kGolden)));
}

inline uint32_t dropout_key(uint64_t row, uint32_t seed) { return mix32(mix32(static_cast<uint32_t>(row)) ^ seed); }

inline bool dropout_keeps(uint32_t key, int64_t column, uint32_t threshold) {
  return mix32(key + static_cast<uint32_t>(column) * kGolden) >= threshold;
}

// p in [0, 1).
inline glimodern::Dropout make_dropout(double p, uint64_t seed) {
  return {p > 0.0, static_cast<uint32_t>(p * 4294967296.0), 1.0 / (1.0 - p), static_cast<uint32_t>(seed)};
}

}  // namespace
