#include "bindings.h"

#include <cmath>

#include "glimodern/span_entities.h"
#include "glimodern/span_loss.h"
#include "glimodern/span_scores.h"

namespace nb = nanobind;

namespace glimodern {
namespace {

SpanInputs inputs(uintptr_t a, uintptr_t b, uintptr_t u, uintptr_t c, uintptr_t cu_words, uintptr_t cu_types,
                  int64_t texts, int64_t words, int64_t types, int64_t hidden, int64_t max_width, double dropout_p,
                  uint64_t seed) {
  SpanInputs in{};
  in.a = at<const float>(a);
  in.b = at<const float>(b);
  in.u = at<const float>(u);
  in.c = at<const float>(c);
  in.cu_words = at<const int32_t>(cu_words);
  in.cu_types = at<const int32_t>(cu_types);
  in.texts = texts;
  in.words = words;
  in.types = types;
  in.hidden = hidden;
  in.max_width = max_width;
  in.dropout = dropout_p > 0.0;
  in.drop_below = static_cast<uint32_t>(std::floor(dropout_p * 4294967296.0));
  in.keep_scale = static_cast<float>(1.0 / (1.0 - dropout_p));
  in.seed = static_cast<uint32_t>(seed);
  return in;
}

SpanGrads grads(uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc) {
  return {at<float>(da), at<float>(db), at<float>(du), at<float>(dc)};
}

}  // namespace

#define SPAN_PARAMETERS                                                                                      \
  uintptr_t a, uintptr_t b, uintptr_t u, uintptr_t c, uintptr_t cu_words, uintptr_t cu_types, int64_t texts, \
      int64_t words, int64_t types, int64_t hidden, int64_t max_width, double dropout_p, uint64_t seed
#define SPAN_ARGUMENTS a, b, u, c, cu_words, cu_types, texts, words, types, hidden, max_width, dropout_p, seed

void bind_span(nb::module_& m) {
  m.def("span_scores_forward", [](SPAN_PARAMETERS, uintptr_t logits, int threads) {
    nb::gil_scoped_release release;
    span_scores_forward(inputs(SPAN_ARGUMENTS), at<float>(logits), checked_threads(threads));
  });
  m.def("span_scores_backward", [](SPAN_PARAMETERS, uintptr_t grad_logits, uintptr_t da, uintptr_t db, uintptr_t du,
                                   uintptr_t dc, int threads) {
    nb::gil_scoped_release release;
    span_scores_backward(inputs(SPAN_ARGUMENTS), at<const float>(grad_logits), grads(da, db, du, dc),
                         checked_threads(threads));
  });
  m.def("span_loss", [](SPAN_PARAMETERS, uintptr_t positives, int64_t count, float gamma, float positive_weight,
                        float negative_weight, bool with_grads, uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc,
                        int threads) {
    nb::gil_scoped_release release;
    const SpanGrads out = grads(da, db, du, dc);
    return span_loss(inputs(SPAN_ARGUMENTS), at<const int64_t>(positives), count,
                     {gamma, positive_weight, negative_weight}, with_grads ? &out : nullptr, checked_threads(threads));
  });
  nb::class_<SpanEntities>(m, "SpanEntities")
      .def("__len__", &SpanEntities::count)
      .def("copy_to", [](const SpanEntities& found, uintptr_t word, uintptr_t width, uintptr_t type, uintptr_t logit) {
        found.copy_to(at<int64_t>(word), at<int64_t>(width), at<int64_t>(type), at<float>(logit));
      });
  m.def("span_entities", [](SPAN_PARAMETERS, uintptr_t bounds, int threads) {
    nb::gil_scoped_release release;
    return span_entities(inputs(SPAN_ARGUMENTS), at<const float>(bounds), checked_threads(threads));
  });
}

}  // namespace glimodern
