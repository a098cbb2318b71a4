// Dropout by a counter-based mask (csrc/dropout_mask.h, glimodern/reference/span.py: dropout_keep).
//
//     y(r, h) = keep(r, h) * keep_scale * x(r, h)
#pragma once

#include <cstdint>

namespace glimodern {

struct Dropout {
  bool enabled;
  uint32_t threshold;  // elements with a hash below it are dropped: floor(p * 2^32)
  double keep_scale;   // 1 / (1 - p)
  uint32_t seed;       // low 32 bits
};

struct DropoutRows {
  const float* x;  // [rows, columns], contiguous, like y
  float* y;        // may be x
  int64_t rows, columns;
  Dropout dropout;
};

void dropout_rows(const DropoutRows&, int threads);

}  // namespace glimodern
