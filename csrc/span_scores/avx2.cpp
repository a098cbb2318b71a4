#include "simd/avx2.h"

#include "span_scores/backward.h"
#include "span_scores/forward.h"
#include "span_scores/kernels.h"

namespace glimodern {

void score_block_avx2(const SpanInputs& in, const WordBlock& block, float* values, float* scratch) {
  score_block<Avx2>(in, block, values, scratch);
}

void grad_slice_avx2(const SpanInputs& in, const WordBlock* blocks, int64_t count, const float* values, int64_t column,
                     const SpanGrads& grads, float* scratch) {
  grad_slice<Avx2>(in, blocks, count, values, column, grads, scratch);
}

size_t span_scratch_floats_avx2() { return scratch_floats<Avx2>(); }

}  // namespace glimodern
