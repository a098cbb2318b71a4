#include "bindings.h"
#include "dropout.h"

#include "glimodern/span_entities.h"
#include "glimodern/span_loss.h"
#include "glimodern/span_scores.h"

#include <utility>

namespace nb = nanobind;

namespace glimodern {
namespace {

SpanInputs inputs(uintptr_t a, uintptr_t b, uintptr_t u, uintptr_t c, uintptr_t cu_words, uintptr_t cu_types,
                  int64_t texts, int64_t words, int64_t types, int64_t hidden, int64_t max_width, double dropout_p,
                  uint64_t seed, Dtype dtype) {
  SpanInputs in{};
  in.dtype = dtype;
  in.a = at<const void>(a);
  in.b = at<const void>(b);
  in.u = at<const void>(u);
  in.c = at<const void>(c);
  in.cu_words = at<const int32_t>(cu_words);
  in.cu_types = at<const int32_t>(cu_types);
  in.texts = texts;
  in.words = words;
  in.types = types;
  in.hidden = hidden;
  in.max_width = max_width;
  in.dropout = dropout_p > 0.0;
  in.drop_below = dropout_threshold(dropout_p);
  in.keep_scale = 1.0 / (1.0 - dropout_p);
  in.seed = static_cast<uint32_t>(seed);
  return in;
}

template <class W>
SpanGradsOf<W> grads(uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc) {
  return {at<W>(da), at<W>(db), at<W>(du), at<W>(dc)};
}

template <class W>
void bind_entities(nb::module_& m, const char* name) {
  using Found = SpanEntities<W>;
  nb::class_<Found>(m, name)
      .def("__len__", &Found::count)
      .def("copy_to", [](const Found& found, uintptr_t word, uintptr_t width, uintptr_t type, uintptr_t logit) {
        found.copy_to(at<int64_t>(word), at<int64_t>(width), at<int64_t>(type), at<W>(logit));
      });
}

}  // namespace

#define SPAN_PARAMETERS                                                                                      \
  uintptr_t a, uintptr_t b, uintptr_t u, uintptr_t c, uintptr_t cu_words, uintptr_t cu_types, int64_t texts, \
      int64_t words, int64_t types, int64_t hidden, int64_t max_width, double dropout_p, uint64_t seed, Dtype dtype
#define SPAN_ARGUMENTS a, b, u, c, cu_words, cu_types, texts, words, types, hidden, max_width, dropout_p, seed, dtype

void bind_span(nb::module_& m) {
  m.def("span_scores_forward", [](SPAN_PARAMETERS, uintptr_t logits, int threads) {
    nb::gil_scoped_release release;
    widely(dtype, [&](auto wide) {
      span_scores_forward(inputs(SPAN_ARGUMENTS), at<decltype(wide)>(logits), checked_threads(threads));
    });
  });
  m.def("span_scores_backward", [](SPAN_PARAMETERS, uintptr_t grad_logits, uintptr_t da, uintptr_t db, uintptr_t du,
                                   uintptr_t dc, int threads) {
    nb::gil_scoped_release release;
    widely(dtype, [&](auto wide) {
      using W = decltype(wide);
      span_scores_backward(inputs(SPAN_ARGUMENTS), at<const W>(grad_logits), grads<W>(da, db, du, dc),
                           checked_threads(threads));
    });
  });
  m.def("span_loss", [](SPAN_PARAMETERS, uintptr_t positives, int64_t count, double gamma, double positive_weight,
                        double negative_weight, bool with_grads, uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc,
                        int threads) {
    nb::gil_scoped_release release;
    return widely(dtype, [&](auto wide) {
      const auto out = grads<decltype(wide)>(da, db, du, dc);
      return span_loss(inputs(SPAN_ARGUMENTS), at<const int64_t>(positives), count,
                       {gamma, positive_weight, negative_weight}, with_grads ? &out : nullptr,
                       checked_threads(threads));
    });
  });
  bind_entities<float>(m, "SpanEntities");
  bind_entities<double>(m, "SpanEntities64");
  m.def("span_entities", [](SPAN_PARAMETERS, uintptr_t bounds, int threads) {
    return widely(dtype, [&](auto wide) {
      using W = decltype(wide);
      SpanEntities<W> found;
      {
        nb::gil_scoped_release release;
        found = span_entities(inputs(SPAN_ARGUMENTS), at<const W>(bounds), checked_threads(threads));
      }
      return nb::cast(std::move(found));
    });
  });
}

}  // namespace glimodern
