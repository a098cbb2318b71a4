#include "glimodern/select_spans.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

namespace glimodern {

namespace {

size_t words_of(const Candidates& from) {
  int64_t words = 0;
  for (int64_t n = 0; n < from.n; ++n) words = std::max(words, from.end[n] + 1);
  return static_cast<size_t>(words);
}

// Kept spans are equal or disjoint: a word knows the one that covers it by where that one starts and ends.
int64_t select_disjoint(const Candidates& from, bool multi_label, int64_t* kept) {
  const size_t words = words_of(from);
  std::vector<char> covered(words, 0);
  std::vector<int64_t> end_of(words, -1);  // of the kept span that starts at this word
  int64_t count = 0;
  for (int64_t n = 0; n < from.n; ++n) {
    const int64_t start = from.start[n], end = from.end[n], length = end + 1 - start;
    char* first = covered.data() + start;
    if (end_of[static_cast<size_t>(start)] == end) {
      if (multi_label) kept[count++] = n;
    } else if (std::memchr(first, 1, static_cast<size_t>(length)) == nullptr) {
      std::memset(first, 1, static_cast<size_t>(length));
      end_of[static_cast<size_t>(start)] = end;
      kept[count++] = n;
    }
  }
  return count;
}

// A kept span (s, e) crosses (start, end) if start < s <= end < e or s < start <= e < end.
int64_t select_uncrossed(const Candidates& from, bool multi_label, int64_t* kept) {
  const int64_t words = static_cast<int64_t>(words_of(from));
  const size_t size = static_cast<size_t>(words);
  std::vector<int64_t> farthest_end(size, -1), nearest_start(size, words);  // of the kept spans that start, end here
  std::vector<int64_t> latest(size, -1), earlier;  // kept spans that start here: the latest, and each one's forerunner
  std::vector<int64_t> ends;
  int64_t count = 0;
  const auto taken = [&](int64_t start, int64_t end) {
    for (int64_t k = latest[static_cast<size_t>(start)]; k >= 0; k = earlier[static_cast<size_t>(k)]) {
      if (ends[static_cast<size_t>(k)] == end) return true;
    }
    return false;
  };
  for (int64_t n = 0; n < from.n; ++n) {
    const int64_t start = from.start[n], end = from.end[n];
    if (taken(start, end)) {
      if (multi_label) kept[count++] = n;
      continue;
    }
    bool crosses = false;
    for (int64_t i = start; i < end && !crosses; ++i) {
      crosses = farthest_end[static_cast<size_t>(i) + 1] > end || nearest_start[static_cast<size_t>(i)] < start;
    }
    if (crosses) continue;
    const size_t first = static_cast<size_t>(start), last = static_cast<size_t>(end);
    farthest_end[first] = std::max(farthest_end[first], end);
    nearest_start[last] = std::min(nearest_start[last], start);
    earlier.push_back(latest[first]);
    latest[first] = static_cast<int64_t>(ends.size());
    ends.push_back(end);
    kept[count++] = n;
  }
  return count;
}

}  // namespace

int64_t select_spans(const Candidates& from, bool flat, bool multi_label, int64_t* kept) {
  return flat ? select_disjoint(from, multi_label, kept) : select_uncrossed(from, multi_label, kept);
}

}  // namespace glimodern
