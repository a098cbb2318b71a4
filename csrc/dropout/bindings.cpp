#include "bindings.h"
#include "dropout.h"

#include "glimodern/dropout.h"

namespace nb = nanobind;

namespace glimodern {

void bind_dropout(nb::module_& m) {
  m.def("dropout_rows",
        [](uintptr_t x, uintptr_t y, int64_t rows, int64_t columns, double p, uint64_t seed, int threads) {
          nb::gil_scoped_release release;
          const uint32_t drop_below = dropout_threshold(p);
          dropout_rows({at<const float>(x), at<float>(y), rows, columns, drop_below,
                        static_cast<float>(1.0 / (1.0 - p)), static_cast<uint32_t>(seed)},
                       checked_threads(threads));
        });
}

}  // namespace glimodern
