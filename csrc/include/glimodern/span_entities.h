// span_entities: the spans and types whose logit passes the type's bound, without stored logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "glimodern/span.h"

namespace glimodern {

template <class W>  // here and below: the wide type
struct SpanEntity {
  int32_t word, width, type;  // span word..word + width; word and type counted in the batch
  W logit;
};

template <class W>
struct SpanEntities {
  std::vector<std::vector<SpanEntity<W>>> blocks;  // ordered by (text, word, width, type), in and among blocks

  size_t count() const;
  // Columns [count] each.
  void copy_to(int64_t* word, int64_t* width, int64_t* type, W* logit) const;
};

// Those with a logit not <= bounds[type] (a NaN passes). bounds [types]. The same for every number of threads. Memory
// beside the result: at most about 4 MB a thread (8 in fp64), or the logits of one word.
template <class W>
SpanEntities<W> span_entities(const SpanInputs&, const W* bounds, int threads);

}  // namespace glimodern
