// The reference implementation: one query at a time, one loop per symbol, local sums in fp64.
#include <algorithm>
#include <cmath>

#include "attention_varlen/kernels.h"
#include "bf16.h"
#include "call_isa.h"
#include "dropout_mask.h"

namespace glimodern {
namespace {

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  double sum = 0.0;
  for (int64_t h = 0; h < n; ++h) sum += static_cast<double>(widen(x[h])) * widen(y[h]);
  return sum;
}

struct VisibleKeys {  // of query i
  int64_t first, last;
  VisibleKeys(const AttentionInputs& in, const AttentionTask& task, int64_t i)
      : first(std::max(task.start, i - in.window)), last(std::min(task.end, i + in.window + 1)) {}
};

// The factor of a probability: 1 / (1 - p) if kept, 0 if dropped.
double dropout_factor(const AttentionInputs& in, const AttentionTask& task, int64_t i, int64_t j) {
  if (!in.dropout.enabled) return 1.0;
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.heads + task.head), in.dropout.seed);
  return dropout_keeps(key, j - task.start, in.dropout.threshold) ? in.dropout.keep_scale : 0.0;
}

template <class T>
void forward(const AttentionInputs& in, const AttentionTask& task, T* out, Accumulator<T>* lse,
             Accumulator<T>* scores) {
  using Acc = Accumulator<T>;
  for (int64_t i = task.q0; i < task.q1; ++i) {
    const VisibleKeys keys(in, task, i);
    const T* q = row_of<T>(in.q, i, task.head);
    Acc max = -INFINITY;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      Acc& score = scores[j - keys.first];
      score = static_cast<Acc>(in.scale * dot(q, row_of<T>(in.k, j, task.head), in.head_dim));
      if (!(score <= max)) max = score;  // keeps NaN
    }
    double sum = 0.0;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      Acc& score = scores[j - keys.first];
      score = std::exp(score - max);
      sum += score;
    }
    if (lse != nullptr) lse[task.head * in.tokens() + i] = max + static_cast<Acc>(std::log(sum));
    T* to = out + (i * in.heads + task.head) * in.head_dim;
    for (int64_t h = 0; h < in.head_dim; ++h) {
      double value = 0.0;
      for (int64_t j = keys.first; j < keys.last; ++j) {
        const double p = scores[j - keys.first] * dropout_factor(in, task, i, j);
        value += p * widen(row_of<T>(in.v, j, task.head)[h]);
      }
      narrow(static_cast<Acc>(value / sum), to + h);
    }
  }
}

template <class T>
void backward(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
              Accumulator<T>* scratch) {
  using Acc = Accumulator<T>;
  const int64_t size = (task.end - task.start) * in.head_dim;
  const Acc* lse = static_cast<const Acc*>(grads.lse);
  Acc *dq = scratch, *dk = dq + size, *dv = dk + size;
  std::fill(scratch, scratch + 3 * size, Acc{0});
  for (int64_t i = task.start; i < task.end; ++i) {
    const VisibleKeys keys(in, task, i);
    const T *q = row_of<T>(in.q, i, task.head), *grad = row_of<T>(grads.grad_out, i, task.head);
    const double delta = dot(grad, row_of<T>(grads.out, i, task.head), in.head_dim);
    Acc* dq_i = dq + (i - task.start) * in.head_dim;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      const T *k = row_of<T>(in.k, j, task.head), *v = row_of<T>(in.v, j, task.head);
      const Acc score = static_cast<Acc>(in.scale * dot(q, k, in.head_dim));
      const Acc p = std::exp(score - lse[task.head * in.tokens() + i]);
      const Acc keep = static_cast<Acc>(dropout_factor(in, task, i, j));
      const Acc ds = static_cast<Acc>(p * (keep * dot(grad, v, in.head_dim) - delta) * in.scale);
      Acc *dk_j = dk + (j - task.start) * in.head_dim, *dv_j = dv + (j - task.start) * in.head_dim;
      for (int64_t h = 0; h < in.head_dim; ++h) {
        dq_i[h] += ds * widen(k[h]);
        dk_j[h] += ds * widen(q[h]);
        dv_j[h] += p * keep * widen(grad[h]);
      }
    }
  }
  void* const targets[] = {grads.grad_q, grads.grad_k, grads.grad_v};
  for (int part = 0; part < 3; ++part) {
    for (int64_t n = 0; n < size; ++n) {
      const int64_t token = task.start + n / in.head_dim;
      T* to = static_cast<T*>(targets[part]) + (token * in.heads + task.head) * in.head_dim;
      narrow(scratch[part * size + n], to + n % in.head_dim);
    }
  }
}

int64_t floats_per_accumulator(Dtype dtype) { return dtype == Dtype::fp64 ? 2 : 1; }

}  // namespace

void attention_forward_scalar(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse,
                              float* scratch) {
  with_dtype(in.dtype, [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    forward(in, task, static_cast<T*>(out), static_cast<Acc*>(lse), reinterpret_cast<Acc*>(scratch));
  });
}

void attention_backward_scalar(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                               float* scratch) {
  with_dtype(in.dtype, [&](auto element) {
    using T = decltype(element);
    backward<T>(in, task, grads, reinterpret_cast<Accumulator<T>*>(scratch));
  });
}

size_t attention_forward_scratch_scalar(const AttentionInputs& in, int64_t max_seqlen) {
  return static_cast<size_t>(max_seqlen * floats_per_accumulator(in.dtype));
}

size_t attention_backward_scratch_scalar(const AttentionInputs& in, int64_t max_seqlen) {
  return static_cast<size_t>(3 * max_seqlen * in.head_dim * floats_per_accumulator(in.dtype));
}

}  // namespace glimodern
