#include "bindings.h"
#include "dropout_mask.h"

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
  in.dropout = make_dropout(dropout_p, seed);
  return in;
}

}  // namespace

void bind_span_vectors(nb::module_& m) {
  m.def("span_hidden", [](uintptr_t a, uintptr_t b, uintptr_t start, uintptr_t end, int64_t rows, int64_t hidden,
                          int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype, uintptr_t x, int threads) {
    nb::gil_scoped_release release;
    with_accumulator(dtype, [&](auto acc) {
      span_hidden(rows_of(a, b, start, end, rows, hidden, max_width, dropout_p, seed, dtype), at<decltype(acc)>(x),
                  checked_threads(threads));
    });
  });
  m.def("span_hidden_backward", [](uintptr_t a, uintptr_t b, uintptr_t start, uintptr_t end, int64_t rows,
                                   int64_t hidden, int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype,
                                   uintptr_t x, uintptr_t dx, uintptr_t da, uintptr_t db, int threads) {
    nb::gil_scoped_release release;
    with_accumulator(dtype, [&](auto acc) {
      using Acc = decltype(acc);
      span_hidden_backward(rows_of(a, b, start, end, rows, hidden, max_width, dropout_p, seed, dtype), at<const Acc>(x),
                           at<const Acc>(dx), at<Acc>(da), at<Acc>(db), checked_threads(threads));
    });
  });
}

}  // namespace glimodern
