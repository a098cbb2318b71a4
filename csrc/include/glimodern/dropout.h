// Dropout of a matrix by the counter-based mask of csrc/dropout.h (glimodern/reference/span.py, dropout_keep).
//
//     y(r, h) = keep(r, h) * scale * x(r, h)
#pragma once

#include <cstdint>

namespace glimodern {

struct DropoutRows {
  const float* x;  // [rows, columns], contiguous, as y
  float* y;        // may be x
  int64_t rows, columns;
  uint32_t drop_below;  // an element whose hash is below this is dropped: floor(p * 2^32)
  float scale;          // 1 / (1 - p)
  uint32_t seed;
};

void dropout_rows(const DropoutRows&, int threads);

}  // namespace glimodern
