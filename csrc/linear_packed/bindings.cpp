#include "bindings.h"
#include "glimodern/linear_packed.h"

namespace nb = nanobind;

namespace glimodern {

void bind_linear_packed(nb::module_& m) {
  nb::enum_<Activation>(m, "Activation")
      .value("none", Activation::none)
      .value("relu", Activation::relu)
      .value("gelu", Activation::gelu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("geglu", Activation::geglu)
      .value("geglu_tanh", Activation::geglu_tanh)
      .value("swiglu", Activation::swiglu);
  nb::enum_<WeightDtype>(m, "WeightDtype")
      .value("fp32", WeightDtype::fp32)
      .value("bf16", WeightDtype::bf16)
      .value("int8", WeightDtype::int8);
  m.def("allow_vnni", &allow_vnni);
  m.def("linear_packed",
        [](Dtype x_dtype, Dtype y_dtype, uintptr_t x, uintptr_t y, int64_t rows, int64_t inputs, int64_t outputs,
           WeightDtype weight_dtype, uintptr_t weight, uintptr_t input_scale, uintptr_t scale, uintptr_t weight_sum,
           uintptr_t bias, Activation activation, int64_t rank, uintptr_t z, uintptr_t low_rank_weight, int threads) {
          nb::gil_scoped_release release;
          linear_packed({x_dtype,
                         y_dtype,
                         at<const void>(x),
                         at<void>(y),
                         rows,
                         inputs,
                         outputs,
                         weight_dtype,
                         at<const void>(weight),
                         at<const float>(input_scale),
                         at<const float>(scale),
                         at<const int32_t>(weight_sum),
                         at<const float>(bias),
                         activation,
                         {rank, at<const void>(z), at<const float>(low_rank_weight)}},
                        checked_threads(threads));
        });
}

}  // namespace glimodern
