// add_layer_norm for every vector class V (csrc/simd/) and storage type T.
#pragma once

#include <initializer_list>

#include "add_layer_norm/kernels.h"
#include "simd/pair.h"
#include "simd/rows.h"

namespace {

// scratch, in lane order <- row
template <class V, class T>
void arrange(const T* row, int64_t width, float* scratch) {
  for_each_vector<V>(width, [=](int64_t j, auto io) { V::store(scratch + j, io.load(row + j)); });
}

template <class V>
void arrange(const void* row, glimodern::Dtype dtype, int64_t width, float* scratch) {
  if (dtype == glimodern::Dtype::bf16) return arrange<V>(static_cast<const Bf16*>(row), width, scratch);
  arrange<V>(static_cast<const float*>(row), width, scratch);
}

template <class V, bool rms, class T>
void forward_rows(const glimodern::NormForward<T>& in, int64_t begin, int64_t end, float* scratch, int64_t stride) {
  using F = typename V::F;
  const int64_t width = in.width;
  float *const row = scratch, *const weight = scratch + stride, *const bias = scratch + 2 * stride;
  arrange<V>(in.weight, in.weight_dtype, width, weight);
  if (in.bias != nullptr) arrange<V>(in.bias, in.weight_dtype, width, bias);
  const double inverse_width = 1.0 / static_cast<double>(width);
  const bool has_bias = in.bias != nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = in.x + i * width;
    const T* residual = in.residual == nullptr ? nullptr : in.residual + i * width;
    T* sum = in.sum == nullptr ? nullptr : in.sum + i * width;
    T* normed = in.normed + i * width;
    const bool prefetch = i + 1 < end;  // of the next row, while this one is in scratch
    F first = V::zero();
    if (!rms && width >= V::width) {
      first = V::loadu(x);
      if (residual != nullptr) first = V::round_to_storage(V::add(first, V::loadu(residual)));
    }
    const float guess = static_cast<float>(V::reduce_add(first) / V::width);
    F total = V::zero(), squares = V::zero();  // of the differences from a guess of the mean: one pass
    F center = V::set1(guess);
    for_each_vector<V>(width, [&](int64_t j, auto io) {
      if (prefetch) __builtin_prefetch(x + width + j, 0, 3);
      F s = io.load(x + j);
      if (residual != nullptr) s = V::round_to_storage(V::add(s, io.load(residual + j)));
      if (sum != nullptr) io.store_exact(sum + j, s);
      V::store(row + j, s);
      const F d = rms ? s : io.mask(V::sub(s, center));
      if (!rms) total = V::add(total, d);
      squares = V::fma(d, d, squares);
    });
    const double shift = V::reduce_add(total) * inverse_width;
    double variance = V::reduce_add(squares) * inverse_width - shift * shift;
    const float mean = static_cast<float>(guess + shift);
    center = V::set1(mean);
    if (!rms && shift * shift > variance) {  // a poor guess: digits cancelled
      squares = V::zero();
      for_each_vector<V>(width, [&](int64_t j, auto io) {
        const F d = io.mask(V::sub(V::load(row + j), center));
        squares = V::fma(d, d, squares);
      });
      variance = V::reduce_add(squares) * inverse_width;
    }
    const float rstd = static_cast<float>(1.0 / __builtin_sqrt(variance + in.eps));
    const F scale = V::set1(rstd);
    for_each_vector<V>(width, [&](int64_t j, auto io) {
      if (prefetch && residual != nullptr) __builtin_prefetch(residual + width + j, 0, 3);
      const F b = has_bias ? V::load(bias + j) : V::zero();
      const F s = V::load(row + j), xhat = V::mul(rms ? s : V::sub(s, center), scale);
      io.store(normed + j, V::fma(xhat, V::load(weight + j), b));
    });
    if (in.mean != nullptr) in.mean[i] = mean;
    if (in.rstd != nullptr) in.rstd[i] = rstd;
  }
}

template <class V, class T>
void forward(const glimodern::NormForward<T>& in, int64_t begin, int64_t end, float* scratch, int64_t stride) {
  if (in.rms) return forward_rows<V, true>(in, begin, end, scratch, stride);
  forward_rows<V, false>(in, begin, end, scratch, stride);
}

template <class V, bool rms, class T>
void backward_rows(const glimodern::NormBackward<T>& in, int64_t begin, int64_t end, float* grad_weight,
                   float* grad_bias, float* weight) {
  using F = typename V::F;
  const int64_t width = in.width;
  arrange<V>(in.weight, width, weight);
  for (int64_t i = begin; i < end; ++i) {
    const T* grad = in.grad_normed + i * width;
    const T* sum = in.sum + i * width;
    const T* grad_sum = in.grad_sum == nullptr ? nullptr : in.grad_sum + i * width;
    const F mean = rms ? V::zero() : V::set1(in.mean[i]), rstd = V::set1(in.rstd[i]);
    F total_g = V::zero(), total_gx = V::zero();
    for_each_vector<V>(width, [&](int64_t j, auto io) {  // dy = 0 in lanes beyond the row
      const F dy = io.load(grad + j), s = io.load(sum + j), x = V::mul(rms ? s : V::sub(s, mean), rstd);
      const F g = V::mul(dy, V::load(weight + j));
      if (!rms) total_g = V::add(total_g, g);
      total_gx = V::fma(g, x, total_gx);
      if (grad_weight != nullptr) V::store(grad_weight + j, V::fma(dy, x, V::load(grad_weight + j)));
      if (grad_bias != nullptr) V::store(grad_bias + j, V::add(dy, V::load(grad_bias + j)));
    });
    if (in.grad_x == nullptr) continue;
    const F minus_mean_g = V::set1(static_cast<float>(-V::reduce_add(total_g) / static_cast<double>(width)));
    const float mean_gx = static_cast<float>(V::reduce_add(total_gx) / static_cast<double>(width));
    const F minus_mean_gx_rstd = V::set1(-mean_gx * in.rstd[i]);
    T* grad_x = in.grad_x + i * width;
    for_each_vector<V>(width, [&](int64_t j, auto io) {
      const F g = V::fma(io.load(grad + j), V::load(weight + j), minus_mean_g);
      const F s = io.load(sum + j), inner = V::fma(rms ? s : V::sub(s, mean), minus_mean_gx_rstd, g);
      const F outer = grad_sum == nullptr ? V::zero() : io.load(grad_sum + j);
      io.store(grad_x + j, V::fma(rstd, inner, outer));
    });
  }
  for (float* column_sums : {grad_weight, grad_bias}) {  // lane order -> memory order
    if (column_sums == nullptr) continue;
    for (int64_t j = 0; j < width; j += V::width) V::storeu(column_sums + j, V::load(column_sums + j));
  }
}

template <class V, class T>
void backward(const glimodern::NormBackward<T>& in, int64_t begin, int64_t end, float* grad_weight, float* grad_bias,
              float* weight) {
  if (in.rms) return backward_rows<V, true>(in, begin, end, grad_weight, grad_bias, weight);
  backward_rows<V, false>(in, begin, end, grad_weight, grad_bias, weight);
}

}  // namespace
