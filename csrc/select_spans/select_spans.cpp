#include "glimodern/select_spans.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

namespace glimodern {
namespace {

size_t word_count(const Candidates& from) {
  int64_t words = 0;
  for (int64_t n = 0; n < from.n; ++n) words = std::max(words, from.end[n] + 1);
  return static_cast<size_t>(words);
}

// Selected spans are equal or disjoint. The span that covers a word is identified by its start and end.
int64_t select_disjoint(const Candidates& from, bool multi_label, int64_t* selected) {
  const size_t words = word_count(from);
  std::vector<char> covered(words, 0);
  std::vector<int64_t> end_of(words, -1);  // of the selected span that starts at this word
  int64_t count = 0;
  for (int64_t n = 0; n < from.n; ++n) {
    const int64_t start = from.start[n], end = from.end[n], length = end + 1 - start;
    char* first = covered.data() + start;
    if (end_of[static_cast<size_t>(start)] == end) {
      if (multi_label) selected[count++] = n;
    } else if (std::memchr(first, 1, static_cast<size_t>(length)) == nullptr) {
      std::memset(first, 1, static_cast<size_t>(length));
      end_of[static_cast<size_t>(start)] = end;
      selected[count++] = n;
    }
  }
  return count;
}

// A selected span (s, e) crosses (start, end) if start < s <= end < e or s < start <= e < end.
int64_t select_uncrossed(const Candidates& from, bool multi_label, int64_t* selected) {
  const int64_t words = static_cast<int64_t>(word_count(from));
  const size_t size = static_cast<size_t>(words);
  std::vector<int64_t> max_end(size, -1);       // of the selected spans that start at this word
  std::vector<int64_t> min_start(size, words);  // of the selected spans that end at this word
  // The selected spans that start at a word are a linked list: its head by word, then the next one by span.
  std::vector<int64_t> head(size, -1), next, ends;
  int64_t count = 0;
  const auto is_selected = [&](int64_t start, int64_t end) {
    for (int64_t k = head[static_cast<size_t>(start)]; k >= 0; k = next[static_cast<size_t>(k)]) {
      if (ends[static_cast<size_t>(k)] == end) return true;
    }
    return false;
  };
  for (int64_t n = 0; n < from.n; ++n) {
    const int64_t start = from.start[n], end = from.end[n];
    if (is_selected(start, end)) {
      if (multi_label) selected[count++] = n;
      continue;
    }
    bool crosses = false;
    for (int64_t i = start; i < end && !crosses; ++i) {
      crosses = max_end[static_cast<size_t>(i) + 1] > end || min_start[static_cast<size_t>(i)] < start;
    }
    if (crosses) continue;
    const size_t first = static_cast<size_t>(start), last = static_cast<size_t>(end);
    max_end[first] = std::max(max_end[first], end);
    min_start[last] = std::min(min_start[last], start);
    next.push_back(head[first]);
    head[first] = static_cast<int64_t>(ends.size());
    ends.push_back(end);
    selected[count++] = n;
  }
  return count;
}

}  // namespace

int64_t select_spans(const Candidates& from, bool flat, bool multi_label, int64_t* selected) {
  return flat ? select_disjoint(from, multi_label, selected) : select_uncrossed(from, multi_label, selected);
}

}  // namespace glimodern
