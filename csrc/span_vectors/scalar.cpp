// The reference implementation: one loop per symbol. S: the storage type of a and b; Acc: the accumulator type.
#include "bf16.h"
#include "dropout_mask.h"
#include "span_vectors/kernels.h"

namespace glimodern {
namespace {

template <class S, class Acc>
void hidden_row(const SpanRows& in, int64_t row, Acc* x) {
  const int64_t i = in.start[row], j = in.end[row];
  const S *const a = static_cast<const S*>(in.a), *const b = static_cast<const S*>(in.b);
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.max_width + j - i), in.dropout.seed);
  for (int64_t h = 0; h < in.hidden; ++h) {
    Acc value = j < 0 ? 0 : widen(a[i * in.hidden + h]) + widen(b[j * in.hidden + h]);
    value = value < 0 ? 0 : value;  // keeps NaN
    if (in.dropout.enabled) {
      value = dropout_keeps(key, h, in.dropout.threshold) ? value * static_cast<Acc>(in.dropout.keep_scale) : 0;
    }
    x[h] = value;
  }
}

template <class Acc>
void slice_backward(const SpanRows& in, const Acc* x, const Acc* dx, int64_t column, int64_t columns, Acc* da,
                    Acc* db) {
  const Acc scale = in.dropout.enabled ? static_cast<Acc>(in.dropout.keep_scale) : 1;
  for (int64_t row = 0; row < in.rows; ++row) {
    if (in.end[row] < 0) continue;
    for (int64_t h = column; h < column + columns; ++h) {
      if (!(x[row * in.hidden + h] > 0)) continue;
      const Acc grad = dx[row * in.hidden + h] * scale;
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
