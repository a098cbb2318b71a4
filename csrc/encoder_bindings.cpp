#include "bindings.h"
#include "glimodern/add_layer_norm.h"
#include "glimodern/geglu.h"
#include "glimodern/rotary.h"

namespace nb = nanobind;

namespace glimodern {

void bind_encoder(nb::module_& m) {
  m.def("geglu_forward", [](Dtype dtype, uintptr_t x, uintptr_t y, int64_t rows, int64_t width, int threads) {
    nb::gil_scoped_release release;
    geglu_forward(dtype, at<const void>(x), at<void>(y), rows, width, checked_threads(threads));
  });
  m.def("geglu_backward", [](Dtype dtype, uintptr_t dy, uintptr_t x, uintptr_t dx, int64_t rows, int64_t width,
                             int threads) {
    nb::gil_scoped_release release;
    geglu_backward(dtype, at<const void>(dy), at<const void>(x), at<void>(dx), rows, width, checked_threads(threads));
  });
  m.def("rotary", [](Dtype dtype, uintptr_t x, uintptr_t cos, uintptr_t sin, uintptr_t y, int64_t tokens,
                     int64_t groups, int64_t heads, int64_t half, int64_t token_stride, int64_t group_stride,
                     int64_t head_stride, bool inverse, int threads) {
    nb::gil_scoped_release release;
    rotary(dtype, at<const void>(x), at<const void>(cos), at<const void>(sin), at<void>(y),
           {tokens, groups, heads, half, token_stride, group_stride, head_stride, inverse}, checked_threads(threads));
  });
  m.def("add_layer_norm_forward", [](Dtype dtype, uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias,
                                     double eps, uintptr_t normed, uintptr_t sum, uintptr_t mean, uintptr_t rstd,
                                     int64_t rows, int64_t width, bool rms, int threads) {
    nb::gil_scoped_release release;
    add_layer_norm_forward(dtype,
                           {at<const void>(x), at<const void>(residual), dtype == Dtype::fp64 ? dtype : Dtype::fp32,
                            at<const void>(weight), at<const void>(bias), eps, at<void>(normed), at<void>(sum),
                            at<void>(mean), at<void>(rstd), rows, width, rms},
                           checked_threads(threads));
  });
  m.def("add_layer_norm_backward",
        [](Dtype dtype, uintptr_t grad_normed, uintptr_t grad_sum, uintptr_t sum, uintptr_t weight, uintptr_t mean,
           uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias, int64_t rows, int64_t width,
           bool rms, int threads) {
          nb::gil_scoped_release release;
          add_layer_norm_backward(dtype,
                                  {at<const void>(grad_normed), at<const void>(grad_sum), at<const void>(sum),
                                   at<const void>(weight), at<const void>(mean), at<const void>(rstd), at<void>(grad_x),
                                   at<void>(grad_weight), at<void>(grad_bias), rows, width, rms},
                                  checked_threads(threads));
        });
}

}  // namespace glimodern
