// The counter-based dropout mask of glimodern/reference/span.py (dropout_keep), one span's key at a time.
#pragma once

#include <cstdint>

namespace {

constexpr uint32_t kGolden = 0x9E3779B9u;

inline uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

// row: the span's number i * K + k, i counted in the whole batch. Column h is kept if mix32(key + h * kGolden) >=
// floor(p * 2^32).
inline uint32_t dropout_key(uint64_t row, uint32_t seed) { return mix32(mix32(static_cast<uint32_t>(row)) ^ seed); }

}  // namespace
