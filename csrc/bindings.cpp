// The Python module glimodern._C.
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "glimodern/dtype.h"
#include "glimodern/isa.h"

using namespace glimodern;

NB_MODULE(_C, m) {
  m.doc() = "glimodern's CPU kernels (csrc/); use them through glimodern.ops";
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  m.def(
      "current_isa",
      [](bool bf16_products) { return std::string(isa_name(current_isa(bf16_products ? Isa::amx : Isa::avx512))); },
      nanobind::arg("bf16_products") = false);
  m.def("set_isa", &set_isa);
  m.def("openmp", [] {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
  });
  m.def("cores_are_shared", &cores_are_shared);
  m.def("set_short_waits", &set_short_waits);
  m.def("short_waits", &short_waits);
  nanobind::enum_<Dtype>(m, "Dtype").value("fp32", Dtype::fp32).value("bf16", Dtype::bf16).value("fp64", Dtype::fp64);
  bind_dropout(m);
  bind_fma_ceiling(m);
  bind_select_spans(m);
  bind_span(m);
  bind_attention_varlen(m);
  bind_encoder(m);
  bind_linear_packed(m);
  bind_chain(m);
  bind_span_vectors(m);
  bind_token_scores(m);
}
