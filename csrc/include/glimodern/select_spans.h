// select_spans: greedy search over candidate spans.
#pragma once

#include <cstdint>

namespace glimodern {

// n candidate spans in order of preference: words start..end, inclusive, 0 <= start <= end.
struct Candidates {
  const int64_t* start;
  const int64_t* end;
  int64_t n;
};

// Writes the indices of the candidates that conflict with none selected before, and returns their count. Equal spans
// conflict unless multi_label. Different spans conflict if they share a word (flat), or else only if they cross.
int64_t select_spans(const Candidates&, bool flat, bool multi_label, int64_t* selected);

}  // namespace glimodern
