// bf16 storage: the upper half of an fp32.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline void from_float(float x, float* to) { *to = x; }
inline void from_float(float x, Bf16* to) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += 0x7FFFu + (bits >> 16 & 1u);
  to->bits = x != x ? uint16_t{0x7FC0} : static_cast<uint16_t>(bits >> 16);
}

}  // namespace
