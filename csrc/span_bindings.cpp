#include "bindings.h"
#include "dropout_mask.h"

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
  in.dropout = make_dropout(dropout_p, seed);
  return in;
}

template <class Acc>
SpanGradsOf<Acc> grads(uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc) {
  return {at<Acc>(da), at<Acc>(db), at<Acc>(du), at<Acc>(dc)};
}

template <class Acc>
void bind_entities(nb::module_& m, const char* name) {
  using Entities = SpanEntities<Acc>;
  nb::class_<Entities>(m, name)
      .def("__len__", &Entities::count)
      .def("copy_to",
           [](const Entities& entities, uintptr_t word, uintptr_t width, uintptr_t type_id, uintptr_t logit) {
             entities.copy_to(at<int64_t>(word), at<int64_t>(width), at<int64_t>(type_id), at<Acc>(logit));
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
    with_accumulator(dtype, [&](auto acc) {
      span_scores_forward(inputs(SPAN_ARGUMENTS), at<decltype(acc)>(logits), checked_threads(threads));
    });
  });
  m.def("span_scores_backward", [](SPAN_PARAMETERS, uintptr_t grad_logits, uintptr_t da, uintptr_t db, uintptr_t du,
                                   uintptr_t dc, int threads) {
    nb::gil_scoped_release release;
    with_accumulator(dtype, [&](auto acc) {
      using Acc = decltype(acc);
      span_scores_backward(inputs(SPAN_ARGUMENTS), at<const Acc>(grad_logits), grads<Acc>(da, db, du, dc),
                           checked_threads(threads));
    });
  });
  m.def("span_loss", [](SPAN_PARAMETERS, uintptr_t positives, int64_t count, double gamma, double positive_weight,
                        double negative_weight, bool with_grads, uintptr_t da, uintptr_t db, uintptr_t du, uintptr_t dc,
                        int threads) {
    nb::gil_scoped_release release;
    return with_accumulator(dtype, [&](auto acc) {
      const auto out = grads<decltype(acc)>(da, db, du, dc);
      return span_loss(inputs(SPAN_ARGUMENTS), at<const int64_t>(positives), count,
                       {gamma, positive_weight, negative_weight}, with_grads ? &out : nullptr,
                       checked_threads(threads));
    });
  });
  bind_entities<float>(m, "SpanEntities");
  bind_entities<double>(m, "SpanEntities64");
  m.def("span_entities", [](SPAN_PARAMETERS, uintptr_t thresholds, int threads) {
    return with_accumulator(dtype, [&](auto acc) {
      using Acc = decltype(acc);
      SpanEntities<Acc> entities;
      {
        nb::gil_scoped_release release;
        entities = span_entities(inputs(SPAN_ARGUMENTS), at<const Acc>(thresholds), checked_threads(threads));
      }
      return nb::cast(std::move(entities));
    });
  });
}

}  // namespace glimodern
