// attention_varlen: attention within each text of a packed batch, and its gradients.
//
//     out_i = sum_j drop(softmax_j(scale * (q_i . k_j + q_i . c2p[d] + k_j . p2c[d]) + bias[d])) v_j
//
// over keys j in the text of i with |i - j| <= window. The terms of the relative distance d = i - j are optional.
//
// No matrix of size tokens * tokens is stored. Scratch per thread: some hundred KB forward (2 MB at most, with AMX);
// backward also one text's dq of one head in fp32. The tables of the terms are laid out by distance for each call: up
// to the longest text, or some hundred beyond their reach. Kernels trust their caller: glimodern/ops/ checks the
// inputs.
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

// Terms of scores that depend on the relative distance d = i - j of query i and key j, by rows of tables.
struct Positions {
  const int32_t* rows;  // [2 reach + 1] the row of distances -reach to reach, which farther ones share; null: no terms
  int64_t reach;
  int64_t table_rows;
  const void *c2p, *p2c;  // [table_rows, heads, head_dim], contiguous, in the inputs' dtype; null: none
  const void* bias;       // [table_rows, heads], contiguous, accumulator dtype; null: none
};

// What the kernels of an instruction set make of the tables.
struct PreparedPositions {
  const float* tables;
  int64_t head_stride;
  int64_t half;   // the largest distance that they hold
  bool backward;  // they hold what the backward pass needs
};

struct AttentionInputs {
  AttentionRows q, k, v;
  Dtype dtype;                // of every [tokens, heads, head_dim]; fp64 runs in the scalar kernels
  const int32_t* cu_seqlens;  // [texts + 1]
  int64_t texts, heads, head_dim;
  int64_t window;  // no window if at least the length of the longest text
  double scale;
  Dropout dropout;  // of probabilities
  Positions positions;
  PreparedPositions prepared;  // set by attention_varlen_forward and attention_varlen_backward

  int64_t tokens() const { return cu_seqlens[texts]; }
};

struct AttentionGrads {
  AttentionRows grad_out, out;
  const void* lse;                        // [heads, tokens], accumulator dtype: logsumexp_j of the scores
  void *grad_q, *grad_k, *grad_v;         // [tokens, heads, head_dim], contiguous
  void *grad_c2p, *grad_p2c, *grad_bias;  // as the tables; null where they are
};

// Queries [q0, q1) of the text [start, end), for one head; token indices count in the whole batch.
struct AttentionTask {
  int64_t start, end, q0, q1, head;
  float* position_sums;  // backward: gradients of the positions' tables, to add to
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
  struct {
    int64_t (*half)(const AttentionInputs&, int64_t max_seqlen);
    size_t (*tables)(const AttentionInputs&);  // floats of a head's prepared tables
    void (*prepare)(const AttentionInputs&, int64_t head, float* tables);
    size_t (*sums)(const AttentionInputs&);     // floats of a head's gradients in progress
    size_t (*scratch)(const AttentionInputs&);  // floats that `reduce` needs, 64-byte aligned
    // Gradients of the tables for one head from `count` sums, `stride` floats apart.
    void (*reduce)(const AttentionInputs&, const AttentionGrads&, int64_t head, const float* sums, int64_t count,
                   int64_t stride, float* scratch);
  } positions;
};

const AttentionKernels& attention_kernels(Dtype);  // of current_isa(), or scalar for fp64

// Both deterministic: a task's bits depend only on its inputs, not on the number of threads.
void attention_varlen_forward(const AttentionInputs&, void* out, void* lse, int threads);
void attention_varlen_backward(const AttentionInputs&, const AttentionGrads&, int threads);

}  // namespace glimodern
