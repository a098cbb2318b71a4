#include "simd/avx512_bf16.h"

#include "attention_varlen/forward.h"

namespace glimodern {

void attention_forward_avx512_bf16(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse,
                                   float* scratch) {
  if (!readable_as_pairs(in)) return attention_forward_avx512(in, task, out, lse, scratch);
  attention_forward<Avx512, Bf16, Avx512Bf16Pairs>(in, task, static_cast<Bf16*>(out), static_cast<float*>(lse),
                                                   scratch);
}

size_t attention_position_tables_avx512_bf16(const AttentionInputs& in) {
  if (!readable_as_pairs(in) || in.prepared.backward) return attention_position_tables_avx512(in);
  return static_cast<size_t>(PositionLayout<Avx512, Avx512Bf16Pairs>(in).floats);
}

void attention_prepare_positions_avx512_bf16(const AttentionInputs& in, int64_t head, float* tables) {
  if (!readable_as_pairs(in) || in.prepared.backward) return attention_prepare_positions_avx512(in, head, tables);
  prepare_positions<Avx512, Bf16, Avx512Bf16Pairs>(in, head, tables);
}

}  // namespace glimodern
