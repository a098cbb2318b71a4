#include "simd/avx2.h"

#include "attention_varlen/backward.h"
#include "attention_varlen/forward.h"

namespace glimodern {

void attention_forward_avx2(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse,
                            float* scratch) {
  if (in.dtype == Dtype::bf16)
    return attention_forward<Avx2, Bf16>(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse), scratch);
  attention_forward<Avx2, float>(in, task, static_cast<float*>(out), static_cast<float*>(lse), scratch);
}

void attention_backward_avx2(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                             float* scratch) {
  if (in.dtype == Dtype::bf16) return attention_backward<Avx2, Bf16>(in, task, grads, scratch);
  attention_backward<Avx2, float>(in, task, grads, scratch);
}

size_t attention_forward_scratch_avx2(const AttentionInputs& in, int64_t max_seqlen) {
  return forward_scratch<Avx2>(in, max_seqlen);
}

size_t attention_backward_scratch_avx2(const AttentionInputs& in, int64_t max_seqlen) {
  return backward_scratch<Avx2>(in, max_seqlen);
}

int64_t attention_position_half_avx2(const AttentionInputs& in, int64_t max_seqlen) {
  return position_half<Avx2>(in, max_seqlen);
}

size_t attention_position_tables_avx2(const AttentionInputs& in) {
  return static_cast<size_t>(PositionLayout<Avx2>(in).floats);
}

void attention_prepare_positions_avx2(const AttentionInputs& in, int64_t head, float* tables) {
  if (in.dtype == Dtype::bf16) return prepare_positions<Avx2, Bf16>(in, head, tables);
  prepare_positions<Avx2, float>(in, head, tables);
}

size_t attention_position_sums_avx2(const AttentionInputs& in) { return position_sums_floats<Avx2>(in); }

size_t attention_reduce_scratch_avx2(const AttentionInputs& in) {
  return static_cast<size_t>(in.positions.table_rows * padded_dim<Avx2>(in));
}

void attention_reduce_positions_avx2(const AttentionInputs& in, const AttentionGrads& grads, int64_t head,
                                     const float* sums, int64_t count, int64_t stride, float* scratch) {
  if (in.dtype == Dtype::bf16) return reduce_positions<Avx2, Bf16>(in, grads, head, sums, count, stride, scratch);
  reduce_positions<Avx2, float>(in, grads, head, sums, count, stride, scratch);
}

}  // namespace glimodern
