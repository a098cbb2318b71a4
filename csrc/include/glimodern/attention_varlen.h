// attention_varlen: attention within each text of a packed batch, and its gradients.
//
//     out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j      j in the text of i, |i - j| <= window
//
// No matrix of size tokens * tokens is stored. Scratch per thread: some hundred KB forward (2 MB at most, with AMX);
// backward also one text's dq of one head in fp32. Kernels trust their caller: glimodern/ops/ checks the inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimodern/dropout.h"
#include "glimodern/dtype.h"

namespace glimodern {

struct AttentionRows {  // [tokens, heads, head_dim], the last dimension contiguous; the others' strides in elements
  const void* data;
  int64_t row, head;
};

struct AttentionInputs {
  AttentionRows q, k, v;
  Dtype dtype;                // of every [tokens, heads, head_dim]; fp64 runs in the scalar kernels
  const int32_t* cu_seqlens;  // [texts + 1]
  int64_t texts, heads, head_dim;
  int64_t window;  // no window if at least the length of the longest text
  double scale;
  Dropout dropout;  // of probabilities

  int64_t tokens() const { return cu_seqlens[texts]; }
};

struct AttentionGrads {
  AttentionRows grad_out, out;
  const void* lse;                 // [heads, tokens], accumulator dtype: logsumexp_j(scale * q_i . k_j)
  void *grad_q, *grad_k, *grad_v;  // [tokens, heads, head_dim], contiguous
};

// Queries [q0, q1) of the text [start, end), for one head; token indices count in the whole batch.
struct AttentionTask {
  int64_t start, end, q0, q1, head;
};

struct AttentionKernels {
  // The task's rows of out [tokens, heads, head_dim], contiguous, and of lse [heads, tokens], accumulator dtype, or
  // null. scratch: forward_scratch floats.
  void (*forward)(const AttentionInputs&, const AttentionTask&, void* out, void* lse, float* scratch);
  // Rows of grad_q, grad_k and grad_v; the task is a whole text. scratch: backward_scratch floats.
  void (*backward)(const AttentionInputs&, const AttentionTask&, const AttentionGrads&, float* scratch);
  size_t (*forward_scratch)(const AttentionInputs&, int64_t max_seqlen);  // floats per thread, 64-byte aligned
  size_t (*backward_scratch)(const AttentionInputs&, int64_t max_seqlen);
  int64_t task_queries;  // of a forward task at most
};

const AttentionKernels& attention_kernels(Dtype);  // of current_isa(), or scalar for fp64

// Both deterministic: a task's bits depend only on its inputs, not on the number of threads.
void attention_varlen_forward(const AttentionInputs&, void* out, void* lse, int threads);
void attention_varlen_backward(const AttentionInputs&, const AttentionGrads&, int threads);

}  // namespace glimodern
