#include "dropout/kernels.h"
#include "dropout_mask.h"

namespace glimodern {

void dropout_rows_scalar(const DropoutRows& in, int64_t first, int64_t last) {
  const float keep_scale = static_cast<float>(in.dropout.keep_scale);
  for (int64_t r = first; r < last; ++r) {
    const uint32_t key = dropout_key(static_cast<uint64_t>(r), in.dropout.seed);
    for (int64_t h = 0; h < in.columns; ++h) {
      const float x = in.x[r * in.columns + h];
      in.y[r * in.columns + h] = dropout_keeps(key, h, in.dropout.threshold) ? x * keep_scale : 0.0f;
    }
  }
}

}  // namespace glimodern
