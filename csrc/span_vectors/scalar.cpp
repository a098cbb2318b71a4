// The readable truth: one loop a symbol.
#include "dropout.h"
#include "span_vectors/kernels.h"

namespace glimodern {

void hidden_row_scalar(const SpanRows& in, int64_t row, float* x) {
  const int64_t i = in.start[row], j = in.end[row];
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + j - i), in.seed);
  for (int64_t h = 0; h < in.hidden; ++h) {
    float value = j < 0 ? 0.0f : in.a[i * in.hidden + h] + in.b[j * in.hidden + h];
    value = value < 0.0f ? 0.0f : value;  // keeps NaN
    if (in.dropout) {
      value = mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below ? value * in.keep_scale : 0.0f;
    }
    x[h] = value;
  }
}

void hidden_slice_backward_scalar(const SpanRows& in, const float* x, const float* dx, int64_t column, int64_t columns,
                                  float* da, float* db) {
  const float scale = in.dropout ? in.keep_scale : 1.0f;
  for (int64_t row = 0; row < in.rows; ++row) {
    if (in.end[row] < 0) continue;
    for (int64_t h = column; h < column + columns; ++h) {
      if (!(x[row * in.hidden + h] > 0.0f)) continue;
      const float grad = dx[row * in.hidden + h] * scale;
      da[in.start[row] * in.hidden + h] += grad;
      db[in.end[row] * in.hidden + h] += grad;
    }
  }
}

}  // namespace glimodern
