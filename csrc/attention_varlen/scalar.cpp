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

// The table row of query i and key j.
int64_t position_row(const AttentionInputs& in, int64_t i, int64_t j) {
  const int64_t reach = in.positions.reach;
  return in.positions.rows[std::clamp(i - j, -reach, reach) + reach];
}

template <class T>
const T* position_vector(const AttentionInputs& in, const void* table, int64_t row, int64_t head) {
  return static_cast<const T*>(table) + (row * in.heads + head) * in.head_dim;
}

template <class T>
Accumulator<T> score_of(const AttentionInputs& in, int64_t head, int64_t i, int64_t j) {
  const T *q = row_of<T>(in.q, i, head), *k = row_of<T>(in.k, j, head);
  double product = dot(q, k, in.head_dim), bias = 0.0;
  const Positions& positions = in.positions;
  if (positions.rows != nullptr) {
    const int64_t row = position_row(in, i, j);
    if (positions.c2p != nullptr) product += dot(q, position_vector<T>(in, positions.c2p, row, head), in.head_dim);
    if (positions.p2c != nullptr) product += dot(k, position_vector<T>(in, positions.p2c, row, head), in.head_dim);
    if (positions.bias != nullptr) bias = static_cast<const Accumulator<T>*>(positions.bias)[row * in.heads + head];
  }
  return static_cast<Accumulator<T>>(in.scale * product + bias);
}

template <class T>
void forward(const AttentionInputs& in, const AttentionTask& task, T* out, Accumulator<T>* lse,
             Accumulator<T>* scores) {
  using Acc = Accumulator<T>;
  for (int64_t i = task.q0; i < task.q1; ++i) {
    const VisibleKeys keys(in, task, i);
    Acc max = -INFINITY;
    for (int64_t j = keys.first; j < keys.last; ++j) {
      Acc& score = scores[j - keys.first];
      score = score_of<T>(in, task.head, i, j);
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

// Gradients of the positions' tables for one head: [table_rows, head_dim] twice, [table_rows].
template <class T>
struct PositionSums {
  using Acc = Accumulator<T>;
  Acc *c2p, *p2c, *bias;

  PositionSums(const AttentionInputs& in, Acc* sums)
      : c2p(sums),
        p2c(c2p + in.positions.table_rows * in.head_dim),
        bias(p2c + in.positions.table_rows * in.head_dim) {}

  // Adds what the score of query i and key j gives, also to dq and dk. ds: the gradient of its scaled part.
  void add(const AttentionInputs& in, int64_t head, int64_t i, int64_t j, Acc score_grad, Acc ds, Acc* dq,
           Acc* dk) const {
    const int64_t row = position_row(in, i, j), first = row * in.head_dim;
    bias[row] += score_grad;
    const auto add_product = [&](const void* table, const T* own, Acc* d_table, Acc* d_own) {
      if (table == nullptr) return;
      const T* vector = position_vector<T>(in, table, row, head);
      for (int64_t h = 0; h < in.head_dim; ++h) {
        d_own[h] += ds * widen(vector[h]);
        d_table[first + h] += ds * widen(own[h]);
      }
    };
    add_product(in.positions.c2p, row_of<T>(in.q, i, head), c2p, dq);
    add_product(in.positions.p2c, row_of<T>(in.k, j, head), p2c, dk);
  }
};

template <class T>
void reduce_positions(const AttentionInputs& in, const AttentionGrads& grads, int64_t head, const Accumulator<T>* sums,
                      int64_t count, int64_t stride) {
  using Acc = Accumulator<T>;
  const auto total = [&](int64_t n) {
    Acc sum = 0;
    for (int64_t part = 0; part < count; ++part) sum += sums[part * stride + n];
    return sum;
  };
  const int64_t size = in.positions.table_rows * in.head_dim;
  for (int64_t n = 0; n < size; ++n) {
    const int64_t to = (n / in.head_dim * in.heads + head) * in.head_dim + n % in.head_dim;
    if (in.positions.c2p != nullptr) narrow(total(n), static_cast<T*>(grads.grad_c2p) + to);
    if (in.positions.p2c != nullptr) narrow(total(size + n), static_cast<T*>(grads.grad_p2c) + to);
  }
  for (int64_t row = 0; row < in.positions.table_rows && in.positions.bias != nullptr; ++row) {
    static_cast<Acc*>(grads.grad_bias)[row * in.heads + head] = total(2 * size + row);
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
      const Acc p = std::exp(score_of<T>(in, task.head, i, j) - lse[task.head * in.tokens() + i]);
      const Acc keep = static_cast<Acc>(dropout_factor(in, task, i, j));
      const Acc score_grad = static_cast<Acc>(p * (keep * dot(grad, v, in.head_dim) - delta));
      const Acc ds = static_cast<Acc>(score_grad * in.scale);
      if (in.positions.rows != nullptr) {
        PositionSums<T>(in, reinterpret_cast<Acc*>(task.position_sums))
            .add(in, task.head, i, j, score_grad, ds, dq_i, dk + (j - task.start) * in.head_dim);
      }
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

// The scalar kernels read the tables as they are.
int64_t attention_position_half_scalar(const AttentionInputs&, int64_t) { return 0; }
size_t attention_position_tables_scalar(const AttentionInputs&) { return 0; }
void attention_prepare_positions_scalar(const AttentionInputs&, int64_t, float*) {}

size_t attention_position_sums_scalar(const AttentionInputs& in) {
  return static_cast<size_t>(in.positions.table_rows * (2 * in.head_dim + 1) * floats_per_accumulator(in.dtype));
}

size_t attention_reduce_scratch_scalar(const AttentionInputs&) { return 0; }

void attention_reduce_positions_scalar(const AttentionInputs& in, const AttentionGrads& grads, int64_t head,
                                       const float* sums, int64_t count, int64_t stride, float*) {
  with_dtype(in.dtype, [&](auto element) {
    using T = decltype(element);
    reduce_positions<T>(in, grads, head, reinterpret_cast<const Accumulator<T>*>(sums), count,
                        stride / floats_per_accumulator(in.dtype));
  });
}

}  // namespace glimodern
