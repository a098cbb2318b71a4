// bf16 as a storage type: the upper half of an fp32 value.
#pragma once

#include <cstdint>
#include <cstring>

namespace glimodern {

struct Bf16 {
  uint16_t bits;
};

}  // namespace glimodern

namespace {

using glimodern::Bf16;

// Storage type to accumulator type; exact.
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// Accumulator type to storage type; bf16 rounds to nearest, ties to even, and NaN stays NaN.
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(double x, double* y) { *y = x; }
inline void narrow(float x, Bf16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  y->bits = static_cast<uint16_t>(nan ? 0x7FC0u : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
