// Storage in bf16: the upper half of an fp32 number.
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

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline void narrow(float x, float* y) { *y = x; }
inline void narrow(double x, double* y) { *y = x; }
inline void narrow(float x, Bf16* y) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  y->bits = static_cast<uint16_t>(nan ? 0x7FC0u : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
