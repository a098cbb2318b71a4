// The scan for logits above their bounds is one comparison where scoring a logit costs H multiply-adds, so it is
// written once, for the compiler's baseline vectors; scoring is the instruction sets' score_block.
#include "glimodern/span_entities.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

constexpr int64_t kBlockValues = int64_t{1} << 20;  // logits of one block at most (a single word may exceed it)
constexpr int64_t kScan = 16;                       // logits that are tested together

template <class W>
bool passes(W logit, W bound) {
  return !(logit <= bound);
}

// One word's logits [widths, types] -> list; bounds has the types' bounds once a width.
template <class W>
void scan_word(const WordBlock& block, int64_t word, int64_t widths, const W* z, const W* bounds,
               std::vector<SpanEntity<W>>& list) {
  const int64_t n = widths * block.types;
  for (int64_t j = 0; j < n; j += kScan) {
    const int64_t end = std::min(j + kScan, n);
    if (end == j + kScan) {
      int any = 0;
      for (int64_t s = 0; s < kScan; ++s) any |= passes(z[j + s], bounds[j + s]);
      if (any == 0) continue;
    }
    for (int64_t s = j; s < end; ++s) {
      if (!passes(z[s], bounds[s])) continue;
      list.push_back({static_cast<int32_t>(word), static_cast<int32_t>(s / block.types),
                      static_cast<int32_t>(block.first_type + s % block.types), z[s]});
    }
  }
}

}  // namespace

template <class W>
size_t SpanEntities<W>::count() const {
  size_t total = 0;
  for (const auto& list : blocks) total += list.size();
  return total;
}

template <class W>
void SpanEntities<W>::copy_to(int64_t* word, int64_t* width, int64_t* type, W* logit) const {
  for (const auto& list : blocks) {
    for (const SpanEntity<W>& entity : list) {
      *word++ = entity.word;
      *width++ = entity.width;
      *type++ = entity.type;
      *logit++ = entity.logit;
    }
  }
}

template <class W>
SpanEntities<W> span_entities(const SpanInputs& in, const W* bounds, int threads) {
  const SpanKernelsOf<W>& kernels = span_kernels(W{});
  const int64_t share = in.words / (4 * threads) + 1;  // as span_scores: a logit's bits do not depend on the blocks
  const auto blocks = word_blocks(in, std::max<int64_t>(share, 4), kBlockValues, true);
  const int64_t count = static_cast<int64_t>(blocks.size());
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));

  int64_t most_values = 0, most_bounds = 0;
  for (const WordBlock& block : blocks) {
    most_values = std::max(most_values, (block.last - block.first) * block.stride);
    most_bounds = std::max(most_bounds, block.stride);
  }
  const size_t values_at = whole_lines(kernels.scratch_floats);
  constexpr size_t kFloats = sizeof(W) / sizeof(float);
  const size_t bounds_at = values_at + whole_lines(kFloats * static_cast<size_t>(most_values));
  const size_t stride = bounds_at + whole_lines(kFloats * static_cast<size_t>(most_bounds));
  const Scratch scratch = make_scratch(stride * static_cast<size_t>(threads));

  SpanEntities<W> out;
  out.blocks.resize(blocks.size());
  std::atomic<bool> out_of_memory{false};  // no exception may leave a thread
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    const WordBlock& block = blocks[static_cast<size_t>(n)];
    float* mine = scratch.get() + stride * static_cast<size_t>(thread_index());
    W* values = reinterpret_cast<W*>(mine + values_at);
    W* row = reinterpret_cast<W*>(mine + bounds_at);
    kernels.score_block(in, block, values, mine);
    for (int64_t j = 0; j < block.stride; j += block.types) {
      std::copy(bounds + block.first_type, bounds + block.first_type + block.types, row + j);
    }
    try {
      for (int64_t i = block.first; i < block.last; ++i) {
        scan_word(block, i, block.widths(i, in.max_width), values + (i - block.first) * block.stride, row,
                  out.blocks[static_cast<size_t>(n)]);
      }
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
  if (out_of_memory) throw std::bad_alloc();
  return out;
}

template struct SpanEntities<float>;
template struct SpanEntities<double>;
template SpanEntities<float> span_entities(const SpanInputs&, const float*, int);
template SpanEntities<double> span_entities(const SpanInputs&, const double*, int);

}  // namespace glimodern
