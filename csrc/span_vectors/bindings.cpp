#include "bindings.h"
#include "dropout.h"

#include "glimodern/span_vectors.h"

namespace nb = nanobind;

namespace glimodern {
namespace {

SpanRows rows_of(uintptr_t a, uintptr_t b, uintptr_t start, uintptr_t end, int64_t rows, int64_t hidden,
                 int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype) {
  SpanRows in{};
  in.dtype = dtype;
  in.a = at<const void>(a);
  in.b = at<const void>(b);
  in.start = at<const int32_t>(start);
  in.end = at<const int32_t>(end);
  in.rows = rows;
  in.hidden = hidden;
  in.max_width = max_width;
  in.dropout = dropout_p > 0.0;
  in.drop_below = dropout_threshold(dropout_p);
  in.keep_scale = 1.0 / (1.0 - dropout_p);
  in.seed = static_cast<uint32_t>(seed);
  return in;
}

}  // namespace

void bind_span_vectors(nb::module_& m) {
  m.def("span_hidden", [](uintptr_t a, uintptr_t b, uintptr_t start, uintptr_t end, int64_t rows, int64_t hidden,
                          int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype, uintptr_t x, int threads) {
    nb::gil_scoped_release release;
    widely(dtype, [&](auto wide) {
      span_hidden(rows_of(a, b, start, end, rows, hidden, max_width, dropout_p, seed, dtype), at<decltype(wide)>(x),
                  checked_threads(threads));
    });
  });
  m.def("span_hidden_backward", [](uintptr_t a, uintptr_t b, uintptr_t start, uintptr_t end, int64_t rows,
                                   int64_t hidden, int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype,
                                   uintptr_t x, uintptr_t dx, uintptr_t da, uintptr_t db, int threads) {
    nb::gil_scoped_release release;
    widely(dtype, [&](auto wide) {
      using W = decltype(wide);
      span_hidden_backward(rows_of(a, b, start, end, rows, hidden, max_width, dropout_p, seed, dtype), at<const W>(x),
                           at<const W>(dx), at<W>(da), at<W>(db), checked_threads(threads));
    });
  });
}

}  // namespace glimodern
