#include "simd/avx512.h"

#include "attention_varlen/backward.h"
#include "attention_varlen/forward.h"

namespace glimodern {

void attention_forward_avx512(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse,
                              float* scratch) {
  if (in.dtype == Dtype::bf16)
    return attention_forward<Avx512, Bf16>(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse), scratch);
  attention_forward<Avx512, float>(in, task, static_cast<float*>(out), static_cast<float*>(lse), scratch);
}

void attention_backward_avx512(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                               float* scratch) {
  if (in.dtype == Dtype::bf16) return attention_backward<Avx512, Bf16>(in, task, grads, scratch);
  attention_backward<Avx512, float>(in, task, grads, scratch);
}

size_t attention_forward_scratch_avx512(const AttentionInputs& in, int64_t max_seqlen) {
  return forward_scratch<Avx512>(in, max_seqlen);
}

size_t attention_backward_scratch_avx512(const AttentionInputs& in, int64_t max_seqlen) {
  return backward_scratch<Avx512>(in, max_seqlen);
}

}  // namespace glimodern
