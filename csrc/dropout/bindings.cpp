#include "bindings.h"

#include "dropout_mask.h"

namespace nb = nanobind;

namespace glimodern {

void bind_dropout(nb::module_& m) {
  m.def("dropout_rows", [](uintptr_t x, uintptr_t y, int64_t rows, int64_t columns, double p, uint64_t seed,
                           int threads) {
    nb::gil_scoped_release release;
    dropout_rows({at<const float>(x), at<float>(y), rows, columns, make_dropout(p, seed)}, checked_threads(threads));
  });
}

}  // namespace glimodern
