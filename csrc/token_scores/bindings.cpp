#include "bindings.h"
#include "dropout_mask.h"
#include "glimodern/token_scores.h"

namespace nb = nanobind;

namespace glimodern {

void bind_token_scores(nb::module_& m) {
  m.def("token_scores",
        [](Dtype dtype, uintptr_t a, uintptr_t b, uintptr_t x, uintptr_t y, uintptr_t w2, uintptr_t b2, uintptr_t word,
           uintptr_t type, uintptr_t logits, int64_t pairs, int64_t width, int64_t hidden, WeightDtype weight_dtype,
           uintptr_t weight, uintptr_t input_scale, uintptr_t scale, uintptr_t weight_sum, uintptr_t bias,
           double dropout_p, uint64_t seed, int threads) {
          nb::gil_scoped_release release;
          LinearPacked packed{};
          packed.weight_dtype = weight_dtype;
          packed.weight = at<const void>(weight);
          packed.input_scale = at<const float>(input_scale);
          packed.scale = at<const float>(scale);
          packed.weight_sum = at<const int32_t>(weight_sum);
          packed.bias = at<const float>(bias);
          token_scores({dtype, at<const void>(a), at<const void>(b), at<const void>(x), at<const void>(y),
                        at<const float>(w2), at<const float>(b2), at<const int32_t>(word), at<const int32_t>(type),
                        at<float>(logits), pairs, width, hidden, make_dropout(dropout_p, seed)},
                       packed, checked_threads(threads));
        });
  m.def("token_hidden_gradients",
        [](uintptr_t a, uintptr_t b, uintptr_t w2, uintptr_t grad, uintptr_t values, uintptr_t dz, int64_t words,
           int64_t types, int64_t hidden, int64_t first, double dropout_p, uint64_t seed, int threads) {
          nb::gil_scoped_release release;
          token_hidden_gradients(
              {at<const float>(a), at<const float>(b), at<const float>(w2), at<const float>(grad), at<float>(values),
               at<float>(dz), words, types, hidden, first, make_dropout(dropout_p, seed)},
              checked_threads(threads));
        });
}

}  // namespace glimodern
