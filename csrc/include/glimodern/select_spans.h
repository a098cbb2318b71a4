#pragma once

#include <cstdint>

namespace glimodern {

// Greedy search over candidates in order of preference: n spans [start, end] of words (inclusive, 0 <= start <= end).
struct Candidates {
  const int64_t* start;
  const int64_t* end;
  int64_t n;
};

// Writes the numbers of the candidates that conflict with none taken before, and returns how many. The same words twice
// conflict unless multi_label. Different spans conflict when they share a word (flat), or only when they cross.
int64_t select_spans(const Candidates&, bool flat, bool multi_label, int64_t* kept);

}  // namespace glimodern
