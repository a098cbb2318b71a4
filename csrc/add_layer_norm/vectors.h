// add_layer_norm for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include <initializer_list>

#include "add_layer_norm/kernels.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

// scratch, in the lanes' order <- row
template <class V>
void arrange(const float* row, int64_t width, float* scratch) {
  for_row<V>(width, [=](int64_t j, auto io) { V::store(scratch + j, io.load(row + j)); });
}

template <class V, class T>
void forward(const glimodern::NormForward<T>& in, int64_t begin, int64_t end, float* scratch, int64_t stride) {
  using F = typename V::F;
  const int64_t width = in.width;
  float *const row = scratch, *const weight = scratch + stride, *const bias = scratch + 2 * stride;
  arrange<V>(in.weight, width, weight);
  if (in.bias != nullptr) arrange<V>(in.bias, width, bias);
  const double share = 1.0 / static_cast<double>(width);
  const bool has_bias = in.bias != nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = in.x + i * width;
    const T* residual = in.residual == nullptr ? nullptr : in.residual + i * width;
    T* sum = in.sum == nullptr ? nullptr : in.sum + i * width;
    T* normed = in.normed + i * width;
    const bool ahead = i + 1 < end;  // the next row is fetched while this one is in scratch
    F first = V::zero();
    if (width >= V::width) {
      first = V::loadu(x);
      if (residual != nullptr) first = V::rounded(V::add(first, V::loadu(residual)));
    }
    const float guess = static_cast<float>(V::sum(first) / V::width);
    F total = V::zero(), squares = V::zero();  // of the distances from a guess of the mean: one pass
    F center = V::set1(guess);
    for_row<V>(width, [&](int64_t j, auto io) {
      if (ahead) __builtin_prefetch(x + width + j, 0, 3);
      F s = io.load(x + j);
      if (residual != nullptr) s = V::rounded(V::add(s, io.load(residual + j)));
      if (sum != nullptr) io.store_exact(sum + j, s);
      V::store(row + j, s);
      const F d = io.only(V::sub(s, center));
      total = V::add(total, d);
      squares = V::fma(d, d, squares);
    });
    const double off = V::sum(total) * share;
    double variance = V::sum(squares) * share - off * off;
    const float mean = static_cast<float>(guess + off);
    center = V::set1(mean);
    if (off * off > variance) {  // a poor guess: digits cancelled
      squares = V::zero();
      for_row<V>(width, [&](int64_t j, auto io) {
        const F d = io.only(V::sub(V::load(row + j), center));
        squares = V::fma(d, d, squares);
      });
      variance = V::sum(squares) * share;
    }
    const float rstd = static_cast<float>(1.0 / __builtin_sqrt(variance + in.eps));
    const F scale = V::set1(rstd);
    for_row<V>(width, [&](int64_t j, auto io) {
      if (ahead && residual != nullptr) __builtin_prefetch(residual + width + j, 0, 3);
      const F shift = has_bias ? V::load(bias + j) : V::zero();
      const F xhat = V::mul(V::sub(V::load(row + j), center), scale);
      io.store(normed + j, V::fma(xhat, V::load(weight + j), shift));
    });
    if (in.mean != nullptr) {
      in.mean[i] = mean;
      in.rstd[i] = rstd;
    }
  }
}

template <class V, class T>
void backward(const glimodern::NormBackward<T>& in, int64_t begin, int64_t end, float* grad_weight, float* grad_bias,
              float* weight) {
  using F = typename V::F;
  const int64_t width = in.width;
  arrange<V>(in.weight, width, weight);
  for (int64_t i = begin; i < end; ++i) {
    const T* grad = in.grad_normed + i * width;
    const T* sum = in.sum + i * width;
    const T* grad_sum = in.grad_sum == nullptr ? nullptr : in.grad_sum + i * width;
    const F mean = V::set1(in.mean[i]), rstd = V::set1(in.rstd[i]);
    F total_g = V::zero(), total_gx = V::zero();
    for_row<V>(width, [&](int64_t j, auto io) {  // lanes that do not exist have dy = 0
      const F dy = io.load(grad + j), x = V::mul(V::sub(io.load(sum + j), mean), rstd);
      const F g = V::mul(dy, V::load(weight + j));
      total_g = V::add(total_g, g);
      total_gx = V::fma(g, x, total_gx);
      if (grad_weight != nullptr) V::store(grad_weight + j, V::fma(dy, x, V::load(grad_weight + j)));
      if (grad_bias != nullptr) V::store(grad_bias + j, V::add(dy, V::load(grad_bias + j)));
    });
    if (in.grad_x == nullptr) continue;
    const F minus_mean_g = V::set1(static_cast<float>(-V::sum(total_g) / static_cast<double>(width)));
    const float mean_gx = static_cast<float>(V::sum(total_gx) / static_cast<double>(width));
    const F slope = V::set1(-mean_gx * in.rstd[i]);
    T* grad_x = in.grad_x + i * width;
    for_row<V>(width, [&](int64_t j, auto io) {
      const F g = V::fma(io.load(grad + j), V::load(weight + j), minus_mean_g);
      const F inner = V::fma(V::sub(io.load(sum + j), mean), slope, g);
      const F outer = grad_sum == nullptr ? V::zero() : io.load(grad_sum + j);
      io.store(grad_x + j, V::fma(rstd, inner, outer));
    });
  }
  for (float* column_sums : {grad_weight, grad_bias}) {  // from the lanes' order
    if (column_sums == nullptr) continue;
    for (int64_t j = 0; j < width; j += V::width) V::storeu(column_sums + j, V::load(column_sums + j));
  }
}

}  // namespace
