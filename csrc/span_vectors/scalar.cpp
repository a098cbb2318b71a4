// The readable truth: one loop a symbol. S: how a and b are stored; W: the wide type.
#include "bf16.h"
#include "dropout.h"
#include "span_vectors/kernels.h"

namespace glimodern {
namespace {

template <class S, class W>
void hidden_row(const SpanRows& in, int64_t row, W* x) {
  const int64_t i = in.start[row], j = in.end[row];
  const S *const a = static_cast<const S*>(in.a), *const b = static_cast<const S*>(in.b);
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + j - i), in.seed);
  for (int64_t h = 0; h < in.hidden; ++h) {
    W value = j < 0 ? 0 : widen(a[i * in.hidden + h]) + widen(b[j * in.hidden + h]);
    value = value < 0 ? 0 : value;  // keeps NaN
    if (in.dropout) {
      const bool kept = mix32(key + static_cast<uint32_t>(h) * kGolden) >= in.drop_below;
      value = kept ? value * static_cast<W>(in.keep_scale) : 0;
    }
    x[h] = value;
  }
}

template <class W>
void slice_backward(const SpanRows& in, const W* x, const W* dx, int64_t column, int64_t columns, W* da, W* db) {
  const W scale = in.dropout ? static_cast<W>(in.keep_scale) : 1;
  for (int64_t row = 0; row < in.rows; ++row) {
    if (in.end[row] < 0) continue;
    for (int64_t h = column; h < column + columns; ++h) {
      if (!(x[row * in.hidden + h] > 0)) continue;
      const W grad = dx[row * in.hidden + h] * scale;
      da[in.start[row] * in.hidden + h] += grad;
      db[in.end[row] * in.hidden + h] += grad;
    }
  }
}

}  // namespace

template <>
void hidden_row_scalar(const SpanRows& in, int64_t row, float* x) {
  if (in.dtype == Dtype::bf16) return hidden_row<Bf16>(in, row, x);
  hidden_row<float>(in, row, x);
}

template <>
void hidden_row_scalar(const SpanRows& in, int64_t row, double* x) {
  hidden_row<double>(in, row, x);
}

template <>
void hidden_slice_backward_scalar(const SpanRows& in, const float* x, const float* dx, int64_t column, int64_t columns,
                                  float* da, float* db) {
  slice_backward(in, x, dx, column, columns, da, db);
}

template <>
void hidden_slice_backward_scalar(const SpanRows& in, const double* x, const double* dx, int64_t column,
                                  int64_t columns, double* da, double* db) {
  slice_backward(in, x, dx, column, columns, da, db);
}

}  // namespace glimodern
