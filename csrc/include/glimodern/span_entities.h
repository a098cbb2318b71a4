// span_entities: the spans and types whose logit passes the type's bound, without stored logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "glimodern/span.h"

namespace glimodern {

struct SpanEntity {
  int32_t word, width, type;  // span word..word + width; word and type counted in the batch
  float logit;
};

struct SpanEntities {
  std::vector<std::vector<SpanEntity>> blocks;  // ordered by (text, word, width, type), in and among blocks

  size_t count() const;
  // Columns [count] each.
  void copy_to(int64_t* word, int64_t* width, int64_t* type, float* logit) const;
};

// Those with a logit not <= bounds[type] (a NaN passes). bounds [types]. The same for every number of threads. Memory
// beside the result: at most about 4 MB a thread, or the logits of one word.
SpanEntities span_entities(const SpanInputs&, const float* bounds, int threads);

}  // namespace glimodern
