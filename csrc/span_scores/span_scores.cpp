#include "glimodern/span_scores.h"

#include <algorithm>
#include <limits>

#include "scratch.h"
#include "threads.h"

namespace glimodern {

template <class Acc>
void span_scores_forward(const SpanInputs& in, Acc* logits, int threads) {
  const SpanKernelsOf<Acc>& kernels = span_kernels(Acc{});
  const int64_t words =
      std::max<int64_t>(in.words / (4 * threads) + 1, 4);  // a logit's bits do not depend on its block
  const auto blocks = word_blocks(in, words, std::numeric_limits<int64_t>::max(), false);
  const int64_t count = static_cast<int64_t>(blocks.size());
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count)));
  const size_t stride = whole_lines(kernels.scratch_floats);
  const Scratch scratch = make_scratch(stride * static_cast<size_t>(threads));
#pragma omp parallel for schedule(guided) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    const WordBlock& block = blocks[static_cast<size_t>(n)];
    for (int64_t i = block.first; i < block.last; ++i) {
      Acc* row = logits + block.offset + (i - block.first) * block.stride;
      std::fill(row + block.widths(i, in.max_width) * block.types, row + block.stride,
                -std::numeric_limits<Acc>::infinity());
    }
    kernels.score_block(in, block, logits, scratch.get() + stride * static_cast<size_t>(thread_index()));
  }
}

template <class Acc>
void span_scores_backward(const SpanInputs& in, const Acc* grad_logits, const SpanGradsOf<Acc>& grads, int threads) {
  const auto blocks = word_blocks(in, kBlockWords, std::numeric_limits<int64_t>::max(), false);
  const Scratch scratch = make_scratch(whole_lines(span_kernels(Acc{}).scratch_floats) * static_cast<size_t>(threads));
  span_gradients(in, blocks, 0, blocks.size(), grad_logits, grads, scratch.get(), threads);
}

template void span_scores_forward(const SpanInputs&, float*, int);
template void span_scores_forward(const SpanInputs&, double*, int);
template void span_scores_backward(const SpanInputs&, const float*, const SpanGrads&, int);
template void span_scores_backward(const SpanInputs&, const double*, const SpanGradsOf<double>&, int);

}  // namespace glimodern
