#include "dropout.h"

#include "dropout/kernels.h"

namespace glimodern {

void dropout_rows_scalar(const DropoutRows& in, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    const uint32_t key = dropout_key(static_cast<uint64_t>(r), in.seed);
    for (int64_t h = 0; h < in.columns; ++h) {
      const bool keep = mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below;
      in.y[r * in.columns + h] = keep ? in.x[r * in.columns + h] * in.scale : 0.0f;
    }
  }
}

}  // namespace glimodern
