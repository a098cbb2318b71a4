// The epilogue of linear_packed: accumulators -> dequantised, bias, low-rank update, activation, rounded to y. For
// every vector class V (csrc/simd/) and dot-product type D (micro_kernel.h).
#pragma once

#include <cstdint>

#include "bf16.h"
#include "linear_packed/kernels.h"
#include "simd/normal_cdf.h"
#include "simd/rows.h"
#include "simd/sigmoid.h"

namespace {

using glimodern::Activation;
using glimodern::Dtype;
using glimodern::is_gated;
using glimodern::kPanelColumns;
using glimodern::LinearPacked;

// A gated activation's factor is that of its first half.
template <class V, Activation activation>
inline __attribute__((always_inline)) typename V::F activate(typename V::F x) {
  if constexpr (activation == Activation::relu) return V::max(V::zero(), x);
  if constexpr (activation == Activation::gelu || activation == Activation::geglu) {
    typename V::F density;
    return V::mul(x, normal_cdf<V>(x, &density));
  }
  if constexpr (activation == Activation::gelu_tanh || activation == Activation::geglu_tanh) {
    const auto cubic = V::fma(V::mul(x, x), V::set1(0.0713548163f), V::set1(1.59576912f));  // 2 sqrt(2 / pi)
    return V::mul(x, sigmoid<V>(V::mul(x, cubic)));
  }
  if constexpr (activation == Activation::swiglu) return V::mul(x, sigmoid<V>(x));
  return x;
}

// The product plus bias of row r and of V::width outputs from `column` on.
template <class D, class V>
inline __attribute__((always_inline)) typename V::F dequantise(const LinearPacked& in, const float* sum,
                                                               const float* row_scale, const int32_t* zero_point, int r,
                                                               int64_t column) {
  typename V::F product;
  if constexpr (D::int8) {
    const auto exact = D::subtract_zero_point(D::load(sum), zero_point[r], in.weight_sum + column);
    product = V::mul(exact, V::mul(V::set1(row_scale[r]), V::loadu(in.scale + column)));
  } else {
    product = V::load(sum);
  }
  return V::add(product, V::loadu(in.bias + column));
}

// products += z B^T of a row, from `column` on. z: of the row.
template <class V, int N, class T>
inline __attribute__((always_inline)) void add_low_rank(const LinearPacked& in, const T* z, int64_t column,
                                                        typename V::F* products) {
  const int64_t panel = round_up(in.low_rank.rank, 2) * kPanelColumns;
  const float* b[N];
  for (int n = 0; n < N; ++n) {
    const int64_t at = column + n * V::width;
    b[n] = in.low_rank.weight + at / kPanelColumns * panel + at % kPanelColumns;
  }
  for (int64_t k = 0; k < in.low_rank.rank; ++k) {
    const auto factors = V::set1(widen(z[k]));
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) products[n] = V::fma(factors, V::loadu(b[n] + k * kPanelColumns), products[n]);
  }
}

// y <- outputs of row r from its N vectors of accumulators, of products from `column` on; `count` outputs exist. z: of
// the low-rank update; null: none.
template <class D, class V, int N, Activation activation, class T>
inline __attribute__((always_inline)) void epilogue_row(const LinearPacked& in, const float* sums,
                                                        const float* row_scale, const int32_t* zero_point, int r,
                                                        int64_t column, int64_t count, const T* z, T* y) {
  constexpr bool gated = is_gated(activation);
  constexpr int vectors = gated ? (N + 1) / 2 : N;  // of y
  typename V::F products[N + 1], out[vectors];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
    products[n] = dequantise<D, V>(in, sums + n * V::width, row_scale, zero_point, r, column + n * V::width);
  if (z != nullptr) add_low_rank<V, N>(in, z, column, products);
  products[N] = V::zero();
#pragma GCC unroll 4
  for (int n = 0; n < vectors; ++n) {
    if constexpr (gated) {
      typename V::F gate, value;
      V::split8(products[2 * n], products[2 * n + 1], &gate, &value);
      out[n] = V::mul(activate<V, activation>(gate), value);
    } else {
      out[n] = activate<V, activation>(products[n]);
    }
  }
  if (count >= vectors * V::width) {
    if constexpr (vectors == 2) {
      V::storeu2(y, out[0], out[1]);
    } else {
      for (int n = 0; n < vectors; ++n) V::storeu(y + n * V::width, out[n]);
    }
    return;
  }
  for (int n = 0; n < vectors && count > 0; ++n, count -= V::width) {
    if (count >= V::width) {
      V::storeu(y + n * V::width, out[n]);
    } else {
      PartialVector<V>{count}.store(y + n * V::width, out[n]);
    }
  }
}

// y of `rows` rows from `row` on, from their accumulators: N vectors of products from `column` on. row_scale and
// zero_point: of these rows, int8 only.
template <class D, class V, int N, Activation activation, class T>
void epilogue(const LinearPacked& in, const float* sums, int rows, const float* row_scale, const int32_t* zero_point,
              int64_t row, int64_t column) {
  constexpr int64_t products = kPanelColumns / (is_gated(activation) ? 8 : 16);  // per output
  const int64_t first = column / products, count = min(in.outputs - first, N * V::width / products);
  T* y = static_cast<T*>(in.y) + row * in.outputs + first;
  const int64_t rank = in.low_rank.rank;
  const T* z = static_cast<const T*>(in.low_rank.z) + row * rank;
  for (int r = 0; r < rows; ++r, y += in.outputs, sums += N * V::width, z += rank)
    epilogue_row<D, V, N, activation>(in, sums, row_scale, zero_point, r, column, count, rank == 0 ? nullptr : z, y);
}

using Epilogue = void (*)(const LinearPacked&, const float* sums, int rows, const float* row_scale,
                          const int32_t* zero_point, int64_t row, int64_t column);

template <class D, class V, int N, class T>
Epilogue choose_epilogue(Activation activation) {
  if (activation == Activation::relu) return epilogue<D, V, N, Activation::relu, T>;
  if (activation == Activation::gelu) return epilogue<D, V, N, Activation::gelu, T>;
  if (activation == Activation::gelu_tanh) return epilogue<D, V, N, Activation::gelu_tanh, T>;
  if (activation == Activation::geglu) return epilogue<D, V, N, Activation::geglu, T>;
  if (activation == Activation::geglu_tanh) return epilogue<D, V, N, Activation::geglu_tanh, T>;
  if (activation == Activation::swiglu) return epilogue<D, V, N, Activation::swiglu, T>;
  return epilogue<D, V, N, Activation::none, T>;
}

template <class D, class V, int N>
Epilogue choose_epilogue(const LinearPacked& in) {
  return in.y_dtype == Dtype::fp32 ? choose_epilogue<D, V, N, float>(in.activation)
                                   : choose_epilogue<D, V, N, Bf16>(in.activation);
}

}  // namespace
