// The scan for logits above their thresholds takes one comparison where scoring a logit takes H FMAs. So the scan is
// written once, for the compiler's baseline vectors. Scoring is score_block of the instruction set.
#include "glimodern/span_entities.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "scratch.h"
#include "threads.h"

namespace glimodern {
namespace {

constexpr int64_t kBlockValues = int64_t{1} << 20;  // logits of a block at most; a single word may exceed it
constexpr int64_t kScan = 32;                       // logits that are tested together

template <class Acc>
bool passes(Acc logit, Acc threshold) {
  return !(logit <= threshold);
}

// Appends the entities among one word's logits z [widths, types] to list. thresholds [widths, types]: the types'
// thresholds repeated for each width.
template <class Acc>
void scan_word(const WordBlock& block, int64_t word, int64_t widths, const Acc* z, const Acc* thresholds,
               std::vector<SpanEntity<Acc>>& list) {
  const int64_t n = widths * block.types;
  for (int64_t j = 0; j < n; j += kScan) {
    const int64_t end = std::min(j + kScan, n);
    if (end == j + kScan) {
      int any = 0;
#pragma GCC unroll 1  // else GCC unrolls it before it looks for vectors
      for (int64_t s = 0; s < kScan; ++s) any |= passes(z[j + s], thresholds[j + s]);
      if (any == 0) continue;
    }
    for (int64_t s = j; s < end; ++s) {
      if (!passes(z[s], thresholds[s])) continue;
      list.push_back({static_cast<int32_t>(word), static_cast<int32_t>(s / block.types),
                      static_cast<int32_t>(block.first_type + s % block.types), z[s]});
    }
  }
}

}  // namespace

template <class Acc>
size_t SpanEntities<Acc>::count() const {
  size_t total = 0;
  for (const auto& list : blocks) total += list.size();
  return total;
}

template <class Acc>
void SpanEntities<Acc>::copy_to(int64_t* word, int64_t* width, int64_t* type_id, Acc* logit) const {
  for (const auto& list : blocks) {
    for (const SpanEntity<Acc>& entity : list) {
      *word++ = entity.word;
      *width++ = entity.width;
      *type_id++ = entity.type_id;
      *logit++ = entity.logit;
    }
  }
}

template <class Acc>
SpanEntities<Acc> span_entities(const SpanInputs& in, const Acc* thresholds, int threads) {
  const SpanKernelsOf<Acc>& kernels = span_kernels(Acc{});
  const int64_t words =
      std::max<int64_t>(in.words / (4 * threads) + 1, 4);  // a logit's bits do not depend on its block
  const auto blocks = word_blocks(in, words, kBlockValues, true);
  const int64_t count = static_cast<int64_t>(blocks.size());
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));

  int64_t max_values = 0, max_stride = 0;
  for (const WordBlock& block : blocks) {
    max_values = std::max(max_values, (block.last - block.first) * block.stride);
    max_stride = std::max(max_stride, block.stride);
  }
  const size_t values_at = whole_lines(kernels.scratch_floats);
  constexpr size_t kFloats = sizeof(Acc) / sizeof(float);
  const size_t thresholds_at = values_at + whole_lines(kFloats * static_cast<size_t>(max_values));
  const size_t stride = thresholds_at + whole_lines(kFloats * static_cast<size_t>(max_stride));
  const Scratch scratch = make_scratch(stride * static_cast<size_t>(threads));

  SpanEntities<Acc> out;
  out.blocks.resize(blocks.size());
  std::atomic<bool> out_of_memory{false};  // no exception may leave the parallel region
#pragma omp parallel for schedule(guided) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    const WordBlock& block = blocks[static_cast<size_t>(n)];
    float* own = scratch.get() + stride * static_cast<size_t>(thread_index());
    Acc* values = reinterpret_cast<Acc*>(own + values_at);
    Acc* row = reinterpret_cast<Acc*>(own + thresholds_at);
    kernels.score_block(in, block, values, own);
    for (int64_t j = 0; j < block.stride; j += block.types) {
      std::copy(thresholds + block.first_type, thresholds + block.first_type + block.types, row + j);
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
