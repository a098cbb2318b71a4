// span_entities: the spans and types whose logit exceeds the type's threshold, without stored logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "glimodern/span.h"

namespace glimodern {

// Acc, here and below: the accumulator type.
template <class Acc>
struct SpanEntity {
  int32_t word, width, type_id;  // span word..word + width; word and type_id count in the batch
  Acc logit;
};

template <class Acc>
struct SpanEntities {
  std::vector<std::vector<SpanEntity<Acc>>>
      blocks;  // ordered by (text, word, width, type_id), within and across blocks

  size_t count() const;
  // Columns [count] each.
  void copy_to(int64_t* word, int64_t* width, int64_t* type_id, Acc* logit) const;
};

// The entities whose logit is not <= thresholds[type_id]; a NaN passes. thresholds [types]. The same result for every
// number of threads. Memory in addition to the result: at most about 4 MB per thread (8 in fp64), or the logits of one
// word.
template <class Acc>
SpanEntities<Acc> span_entities(const SpanInputs&, const Acc* thresholds, int threads);

}  // namespace glimodern
