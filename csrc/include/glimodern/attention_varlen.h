// attention_varlen: attention inside each text of a packed batch, and its gradients.
//
//     out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j      j in the text of i, |i - j| <= window
//
// Nothing of size tokens * tokens is stored: a thread's scratch is some hundred KB forward (2 MB at most, with AMX),
// and backward also one text's dq of one head in fp32. Kernels trust their caller: the inputs are checked where Python
// enters (glimodern/ops/).
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimodern/dtype.h"

namespace glimodern {

struct AttentionRows {  // [tokens, heads, head_dim], the last dimension contiguous, the others' strides in elements
  const void* data;
  int64_t row, head;
};

struct AttentionInputs {
  AttentionRows q, k, v;
  Dtype dtype;                // of every [tokens, heads, head_dim]; fp64 runs in the scalar kernels
  const int32_t* cu_seqlens;  // [texts + 1]
  int64_t texts, heads, head_dim;
  int64_t window;  // at least the longest text: none
  double scale;
  bool dropout;         // whether probabilities are dropped at all
  uint32_t drop_below;  // one whose hash is below this is dropped: floor(p * 2^32)
  double keep_scale;    // 1 / (1 - p)
  uint32_t seed;        // low 32 bits

  int64_t tokens() const { return cu_seqlens[texts]; }
};

struct AttentionGrads {
  AttentionRows grad_out, out;
  const void* lse;                 // [heads, tokens], wide: logsumexp_j(scale * q_i . k_j)
  void *grad_q, *grad_k, *grad_v;  // [tokens, heads, head_dim], contiguous
};

// Queries [q0, q1) of the text [start, end), one head; token numbers count in the whole batch.
struct AttentionTask {
  int64_t start, end, q0, q1, head;
};

struct AttentionKernels {
  // out [tokens, heads, head_dim] contiguous, lse [heads, tokens], wide, or null: the task's rows. scratch:
  // forward_scratch floats.
  void (*forward)(const AttentionInputs&, const AttentionTask&, void* out, void* lse, float* scratch);
  // The task's whole text: rows of grad_q, grad_k and grad_v. scratch: backward_scratch floats.
  void (*backward)(const AttentionInputs&, const AttentionTask&, const AttentionGrads&, float* scratch);
  size_t (*forward_scratch)(const AttentionInputs&, int64_t longest);  // of 64-byte aligned scratch, a thread
  size_t (*backward_scratch)(const AttentionInputs&, int64_t longest);
  int64_t task_queries;  // of a forward task at most
};

const AttentionKernels& attention_kernels(Dtype);  // of current_isa(), or scalar for fp64

// Both deterministic: a task's bits depend on nothing but its inputs, whatever the number of threads.
void attention_varlen_forward(const AttentionInputs&, void* out, void* lse, int threads);
void attention_varlen_backward(const AttentionInputs&, const AttentionGrads&, int threads);

}  // namespace glimodern
