#include "glimodern/span.h"

#include <algorithm>

#include "glimodern/isa.h"
#include "integer_math.h"
#include "scratch.h"
#include "span_loss/kernels.h"
#include "span_scores/kernels.h"
#include "threads.h"

namespace glimodern {

const SpanKernels& span_kernels() {
  static const SpanKernels scalar{score_block_scalar<float>, grad_slice_scalar<float>, focal_negatives_scalar<float>,
                                  0};
#if defined(GLIMODERN_X86)
  static const SpanKernels avx2{score_block_avx2, grad_slice_avx2, focal_negatives_avx2, span_scratch_floats_avx2()};
  static const SpanKernels avx512{score_block_avx512, grad_slice_avx512, focal_negatives_avx512,
                                  span_scratch_floats_avx512()};
  const Isa isa = current_isa();
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx2) return avx2;
#endif
  return scalar;
}

const SpanKernelsOf<double>& span_kernels(double) {
  static const SpanKernelsOf<double> scalar{score_block_scalar<double>, grad_slice_scalar<double>,
                                            focal_negatives_scalar<double>, 0};
  return scalar;
}

std::vector<WordBlock> word_blocks(const SpanInputs& in, int64_t words, int64_t values, bool packed) {
  std::vector<WordBlock> blocks;
  int64_t text_offset = 0;
  for (int64_t text = 0; text < in.texts; ++text) {
    const int64_t first = in.cu_words[text], end = in.cu_words[text + 1];
    const int64_t first_type = in.cu_types[text], types = in.cu_types[text + 1] - first_type;
    const int64_t stride = (packed ? std::min(in.max_width, end - first) : in.max_width) * types;
    if (types == 0) continue;
    const int64_t max_words =
        std::max<int64_t>(1, std::min(std::min(words, kBlockWords), values / std::max<int64_t>(1, stride)));
    const int64_t count = ceil_div(end - first, max_words);
    const int64_t step = count > 0 ? ceil_div(end - first, count) : 1;  // blocks of nearly equal size
    for (int64_t word = first; word < end; word += step) {
      const int64_t offset = packed ? 0 : text_offset + (word - first) * stride;
      blocks.push_back({word, std::min(word + step, end), end, first_type, types, offset, stride});
    }
    text_offset += (end - first) * stride;
  }
  return blocks;
}

namespace {

// grad_c += the sums over spans of the blocks' values.
template <class Acc>
void grad_bias(const SpanInputs& in, const WordBlock* blocks, int64_t count, const Acc* values, Acc* grad_c) {
  std::vector<double> sums;
  for (const WordBlock* block = blocks; block != blocks + count; ++block) {
    sums.assign(static_cast<size_t>(block->types), 0.0);
    for (int64_t i = block->first; i < block->last; ++i) {
      const Acc* g = values + block->offset + (i - block->first) * block->stride;
      for (int64_t k = 0; k < block->widths(i, in.max_width); ++k, g += block->types) {
        for (int64_t t = 0; t < block->types; ++t) sums[t] += g[t];
      }
    }
    for (int64_t t = 0; t < block->types; ++t) grad_c[block->first_type + t] += static_cast<Acc>(sums[t]);
  }
}

}  // namespace

template <class Acc>
void span_gradients(const SpanInputs& in, const std::vector<WordBlock>& blocks, size_t begin, size_t end,
                    const Acc* values, const SpanGradsOf<Acc>& grads, float* scratch, int threads) {
  const SpanKernelsOf<Acc>& kernels = span_kernels(Acc{});
  const size_t stride = whole_lines(kernels.scratch_floats);
  const int64_t count = static_cast<int64_t>(end - begin);
  const int64_t slices = ceil_div(in.hidden, kSliceColumns);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t slice = 0; slice <= slices; ++slice) {
    float* own = scratch + stride * static_cast<size_t>(thread_index());
    if (slice == slices) {
      grad_bias(in, blocks.data() + begin, count, values, grads.c);
    } else {
      kernels.grad_slice(in, blocks.data() + begin, count, values, slice * kSliceColumns, grads, own);
    }
  }
}

template void span_gradients(const SpanInputs&, const std::vector<WordBlock>&, size_t, size_t, const float*,
                             const SpanGrads&, float*, int);
template void span_gradients(const SpanInputs&, const std::vector<WordBlock>&, size_t, size_t, const double*,
                             const SpanGradsOf<double>&, float*, int);

}  // namespace glimodern
