// The kernels of each instruction set; attention_varlen.cpp makes the table.
#pragma once

#include "glimodern/attention_varlen.h"

namespace glimodern {

constexpr int64_t kTaskQueries = 256;     // of a forward task at most
constexpr int64_t kAmxTaskQueries = 512;  // with AMX, where packing the keys costs relatively more

#define GLIMODERN_DECLARE_ATTENTION(isa)                                                                              \
  void attention_forward_##isa(const AttentionInputs&, const AttentionTask&, void* out, void* lse, float* scratch);   \
  void attention_backward_##isa(const AttentionInputs&, const AttentionTask&, const AttentionGrads&, float* scratch); \
  size_t attention_forward_scratch_##isa(const AttentionInputs&, int64_t max_seqlen);                                 \
  size_t attention_backward_scratch_##isa(const AttentionInputs&, int64_t max_seqlen);                                \
  int64_t attention_position_half_##isa(const AttentionInputs&, int64_t max_seqlen);                                  \
  size_t attention_position_tables_##isa(const AttentionInputs&);                                                     \
  void attention_prepare_positions_##isa(const AttentionInputs&, int64_t head, float* tables);                        \
  size_t attention_position_sums_##isa(const AttentionInputs&);                                                       \
  size_t attention_reduce_scratch_##isa(const AttentionInputs&);                                                      \
  void attention_reduce_positions_##isa(const AttentionInputs&, const AttentionGrads&, int64_t head,                  \
                                        const float* sums, int64_t count, int64_t stride, float* scratch);

GLIMODERN_DECLARE_ATTENTION(scalar)
GLIMODERN_DECLARE_ATTENTION(avx2)
GLIMODERN_DECLARE_ATTENTION(avx512)
void attention_forward_avx512_bf16(const AttentionInputs&, const AttentionTask&, void* out, void* lse, float* scratch);
size_t attention_position_tables_avx512_bf16(const AttentionInputs&);
void attention_prepare_positions_avx512_bf16(const AttentionInputs&, int64_t head, float* tables);
void attention_forward_amx(const AttentionInputs&, const AttentionTask&, void* out, void* lse, float* scratch);
size_t attention_forward_scratch_amx(const AttentionInputs&, int64_t max_seqlen);
int64_t attention_position_half_amx(const AttentionInputs&, int64_t max_seqlen);
size_t attention_position_tables_amx(const AttentionInputs&);
void attention_prepare_positions_amx(const AttentionInputs&, int64_t head, float* tables);
#undef GLIMODERN_DECLARE_ATTENTION

// Static: every instruction set compiles its own copy.
template <class T>
static inline const T* row_of(const AttentionRows& rows, int64_t token, int64_t head) {
  return static_cast<const T*>(rows.data) + token * rows.row + head * rows.head;
}

}  // namespace glimodern
