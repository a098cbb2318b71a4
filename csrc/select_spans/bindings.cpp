#include "bindings.h"

#include "glimodern/select_spans.h"

namespace nb = nanobind;

namespace glimodern {

void bind_select_spans(nb::module_& m) {
  m.def("select_spans", [](uintptr_t start, uintptr_t end, int64_t n, bool flat, bool multi_label, uintptr_t selected) {
    nb::gil_scoped_release release;
    return select_spans({at<const int64_t>(start), at<const int64_t>(end), n}, flat, multi_label,
                        at<int64_t>(selected));
  });
}

}  // namespace glimodern
