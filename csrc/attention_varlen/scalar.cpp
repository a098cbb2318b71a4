// The readable truth: a query at a time, one loop a symbol, sums in fp64 where they are local.
#include <algorithm>
#include <cmath>

#include "attention_varlen/kernels.h"
#include "bf16.h"
#include "call_isa.h"
#include "dropout.h"
#include "glimodern/dtype.h"

namespace glimodern {
namespace {

template <class T>
const T* row_of(const AttentionRows& rows, int64_t token, int64_t head) {
  return static_cast<const T*>(rows.data) + token * rows.row + head * rows.head;
}

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  double sum = 0.0;
  for (int64_t h = 0; h < n; ++h) sum += static_cast<double>(widen(x[h])) * widen(y[h]);
  return sum;
}

struct Keys {  // that query i of a task's text sees
  int64_t first, last;
  Keys(const AttentionInputs& in, const AttentionTask& task, int64_t i)
      : first(std::max(task.start, i - in.window)), last(std::min(task.end, i + in.window + 1)) {}
};

// What a kept probability is multiplied by; 0 for a dropped one.
double keep_factor(const AttentionInputs& in, const AttentionTask& task, int64_t i, int64_t j) {
  if (!in.dropout) return 1.0;
  const uint32_t key = dropout_key(static_cast<uint64_t>(i * in.heads + task.head), in.seed);
  return mix32(key + static_cast<uint32_t>(j - task.start) * kGolden) >= in.drop_below ? in.keep_scale : 0.0;
}

template <class T>
void forward(const AttentionInputs& in, const AttentionTask& task, T* out, Wide<T>* lse, Wide<T>* scores) {
  using W = Wide<T>;
  for (int64_t i = task.q0; i < task.q1; ++i) {
    const Keys keys(in, task, i);
    const T* q = row_of<T>(in.q, i, task.head);
    W max = -INFINITY;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      W& score = scores[j - keys.first];
      score = static_cast<W>(in.scale * dot(q, row_of<T>(in.k, j, task.head), in.head_dim));
      if (!(score <= max)) max = score;  // keeps NaN
    }
    double sum = 0.0;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      W& score = scores[j - keys.first];
      score = std::exp(score - max);
      sum += score;
    }
    if (lse != nullptr) lse[task.head * in.tokens() + i] = max + static_cast<W>(std::log(sum));
    T* to = out + (i * in.heads + task.head) * in.head_dim;
    for (int64_t h = 0; h < in.head_dim; ++h) {
      double value = 0.0;
      for (int64_t j = keys.first; j < keys.last; ++j) {
        const double p = scores[j - keys.first] * keep_factor(in, task, i, j);
        value += p * widen(row_of<T>(in.v, j, task.head)[h]);
      }
      narrow(static_cast<W>(value / sum), to + h);
    }
  }
}

template <class T>
void backward(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads, Wide<T>* scratch) {
  using W = Wide<T>;
  const int64_t size = (task.end - task.start) * in.head_dim;
  const W* lse = static_cast<const W*>(grads.lse);
  W *dq = scratch, *dk = dq + size, *dv = dk + size;
  std::fill(scratch, scratch + 3 * size, W{0});
  for (int64_t i = task.start; i < task.end; ++i) {
    const Keys keys(in, task, i);
    const T *q = row_of<T>(in.q, i, task.head), *grad = row_of<T>(grads.grad_out, i, task.head);
    const double delta = dot(grad, row_of<T>(grads.out, i, task.head), in.head_dim);
    W* dq_i = dq + (i - task.start) * in.head_dim;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      const T *k = row_of<T>(in.k, j, task.head), *v = row_of<T>(in.v, j, task.head);
      const W score = static_cast<W>(in.scale * dot(q, k, in.head_dim));
      const W p = std::exp(score - lse[task.head * in.tokens() + i]);
      const W keep = static_cast<W>(keep_factor(in, task, i, j));
      const W ds = static_cast<W>(p * (keep * dot(grad, v, in.head_dim) - delta) * in.scale);
      W *dk_j = dk + (j - task.start) * in.head_dim, *dv_j = dv + (j - task.start) * in.head_dim;
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

int64_t floats_of(Dtype dtype) { return dtype == Dtype::fp64 ? 2 : 1; }  // that a wide number takes in scratch

}  // namespace

void attention_forward_scalar(const AttentionInputs& in, const AttentionTask& task, void* out, void* lse,
                              float* scratch) {
  with_dtype(in.dtype, [&](auto stored) {
    using T = decltype(stored);
    using W = Wide<T>;
    forward(in, task, static_cast<T*>(out), static_cast<W*>(lse), reinterpret_cast<W*>(scratch));
  });
}

void attention_backward_scalar(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                               float* scratch) {
  with_dtype(in.dtype, [&](auto stored) {
    using T = decltype(stored);
    backward<T>(in, task, grads, reinterpret_cast<Wide<T>*>(scratch));
  });
}

size_t attention_forward_scratch_scalar(const AttentionInputs& in, int64_t longest) {
  return static_cast<size_t>(longest * floats_of(in.dtype));
}

size_t attention_backward_scratch_scalar(const AttentionInputs& in, int64_t longest) {
  return static_cast<size_t>(3 * longest * in.head_dim * floats_of(in.dtype));
}

}  // namespace glimodern
