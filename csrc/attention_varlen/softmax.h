// Masks, dropout and softmax of rows of attention scores, for every vector class V (csrc/simd/).
#pragma once

#include "attention_varlen/kernels.h"
#include "dropout_mask.h"
#include "integer_math.h"
#include "simd/exp.h"

namespace {

using glimodern::AttentionInputs;
using glimodern::AttentionTask;

// row[j] *= factor for columns j of [c0, c1), multiples of V::width.
template <class V>
void scale_row(float factor, int64_t c0, int64_t c1, float* row) {
  for (int64_t j = c0; j < c1; j += V::width) V::store(row + j, V::mul(V::set1(factor), V::load(row + j)));
}

// Keys [first, last) of a block, counted from the block's first key.
struct KeyRange {
  int64_t first, last;
};

// The keys of [k0, k1) that any of the queries [q0, q1) sees; none if first >= last.
inline KeyRange visible_keys(const AttentionInputs& in, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
  return {max(k0, q0 - in.window) - k0, min(k1, q1 + in.window) - k0};
}

// row[j] <- -inf for columns j of [c0, c1), multiples of V::width, that are not visible.
template <class V>
void mask_row(const KeyRange& visible, int64_t c0, int64_t c1, float* row) {
  const auto count = V::set1(static_cast<uint32_t>(max(visible.last - visible.first, 0)));
  const auto lanes = V::add(V::lanes(), V::set1(static_cast<uint32_t>(-visible.first)));
  const auto minus_infinity = V::set1(-__builtin_inff());
  const auto mask_vector = [&](int64_t j) {
    const auto column = V::add(lanes, V::set1(static_cast<uint32_t>(j)));
    V::store(row + j, V::where_below(column, count, V::load(row + j), minus_infinity));
  };
  for (int64_t j = c0; j < min(visible.first, c1); j += V::width) mask_vector(j);
  for (int64_t j = max(c0, visible.last / V::width * V::width); j < c1; j += V::width) mask_vector(j);
}

// The dropout mask of one query's probabilities. k0: the first column's position in its text.
template <class V>
struct ProbabilityDropout {
  typename V::I first, threshold;

  ProbabilityDropout(const AttentionInputs& in, const AttentionTask& task, int64_t query, int64_t k0)
      : threshold(V::set1(in.dropout.threshold)) {
    first = column_counters<V>(dropout_key(static_cast<uint64_t>(query * in.heads + task.head), in.dropout.seed), k0);
  }

  typename V::F apply(int64_t j, typename V::F x) const {  // x, of columns j on, where kept; else 0
    const auto counter = V::add(first, V::set1(static_cast<uint32_t>(j) * kGolden));
    return V::where_at_least(mix32_lanes<V>(counter), threshold, x);
  }
};

// e^(x - m) = 2^(log2(e) x - to_log2(m)) e^log2_rounding(m): the maximum in powers of two, and the rounding error of
// that, as an exponent of e.
inline float to_log2(float x) { return kLog2E * x; }
constexpr float kLeastScore = 2.3e38f;  // below minus this, to_log2() is -inf
inline float log2_rounding(float x) { return kLn2 * __builtin_fmaf(-kLog2E, x, to_log2(x)); }

// Online softmax of R queries' scores, rows `stride` apart, in columns [c0, c1). Raises running_max[r] to the row's
// maximum; row[j] <- 2^(log2(e) row[j] - to_log2(running_max)); row_sum[r] <- the row's sum. Queries side by side hide
// the latency of each row's dependency chain.
template <class V, int R>
void softmax_rows(float* row, int64_t stride, int64_t c0, int64_t c1, float* running_max, float* row_sum) {
  const auto log2e = V::set1(kLog2E);
  typename V::F shift[R], total[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) shift[r] = V::set1(running_max[r]), total[r] = V::zero();
  for (int64_t j = c0; j < c1; j += V::width) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) shift[r] = V::max(shift[r], V::load(row + r * stride + j));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    running_max[r] = V::reduce_max(shift[r]);
    // -inf: no key of this block is visible. Or a bias masks them, with a value that is no finite power of two.
    shift[r] = V::set1(running_max[r] < -kLeastScore ? 0.0f : to_log2(running_max[r]));
  }
  for (int64_t j = c0; j < c1; j += V::width) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto p = exp2_softmax<V>(V::fms(log2e, V::load(row + r * stride + j), shift[r]));
      total[r] = V::add(total[r], p);
      V::store(row + r * stride + j, p);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row_sum[r] = static_cast<float>(V::reduce_add(total[r]));
}

}  // namespace
