// Prepares rows of x for linear_packed's micro-kernels: converts, pads or quantises. For every vector class V
// (csrc/simd/).
#pragma once

#include <cstdint>

#include "linear_packed/kernels.h"
#include "simd/rows.h"

namespace {

using glimodern::Dtype;
using glimodern::LinearPacked;
using glimodern::PreparedRows;
using glimodern::WeightDtype;

// A row as T, zero-padded; kRound: rounded to bf16.
template <class V, bool kRound, class T, class X>
void prepare_float_row(const X* x, int64_t inputs, int64_t padded, T* to) {
  for_each_vector<V>(inputs, [=](int64_t j, auto io) {
    const typename V::F value = io.load(x + j);
    io.store(to + j, kRound ? V::round_to_bf16(V::canonical_nan(value)) : value);
  });
  for (int64_t j = inputs; j < padded; ++j) narrow(0.0f, to + j);
}

// T: the type of a prepared row's elements; dtype: of the weight.
template <class V, class T, WeightDtype dtype>
void prepare_floats(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  constexpr bool kRound = dtype == WeightDtype::bf16 && sizeof(T) == sizeof(float);
  T* out = reinterpret_cast<T*>(prepared.data + to * prepared.stride);
  const int64_t padded = prepared.groups * glimodern::group_inputs(dtype), first = row * in.inputs;
  if (!kRound && in.x_dtype == (sizeof(T) == sizeof(float) ? Dtype::fp32 : Dtype::bf16)) {
    if (in.inputs > 0)
      __builtin_memcpy(out, static_cast<const T*>(in.x) + first, in.inputs * sizeof(T));  // x may be null
    for (int64_t j = in.inputs; j < padded; ++j) narrow(0.0f, out + j);
  } else if (in.x_dtype == Dtype::fp32) {
    prepare_float_row<V, kRound>(static_cast<const float*>(in.x) + first, in.inputs, padded, out);
  } else {
    prepare_float_row<V, false>(static_cast<const Bf16*>(in.x) + first, in.inputs, padded, out);
  }
}

// A row as uint8, with its scale and zero point. D::quantise stores D::bytes elements at a time; the stride has room.
template <class D, class V, class T>
void prepare_int8_row(const T* x, const float* input_scale, int64_t inputs, int64_t padded, uint8_t* to, float* scale,
                      int32_t* zero_point) {
  using F = typename V::F;
  F high = V::zero(), low = V::zero(), bad = V::zero();  // bad: NaN if an element is not finite, else 0
  for_each_vector<V>(inputs, [&](int64_t j, auto io) {
    const F value = input_scale == nullptr ? io.load(x + j) : V::mul(io.load(x + j), io.load(input_scale + j));
    high = V::max(value, high);
    low = V::max(V::sub(V::zero(), value), low);
    bad = V::fma(value, V::zero(), bad);
  });
  const bool finite = V::reduce_add(bad) == 0.0;
  const glimodern::RowQuantisation range = glimodern::row_quantisation(V::reduce_max(low), V::reduce_max(high));
  *scale = finite ? range.scale : __builtin_nanf("");
  *zero_point = finite ? range.zero_point : 0;
  const F factor = V::set1(finite ? range.inverse_scale : 0.0f);
  constexpr int vectors = D::bytes / V::width;
  int64_t j = 0;
  F values[vectors];
  for (; j + D::bytes <= inputs; j += D::bytes) {
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) {
      const int64_t k = j + n * V::width;
      const F value = input_scale == nullptr ? V::loadu(x + k) : V::mul(V::loadu(x + k), V::loadu(input_scale + k));
      values[n] = V::mul(value, factor);
    }
    D::quantise(values, *zero_point, to + j);
  }
  if (j < padded) {
    alignas(64) float rest[D::bytes] = {};
    for (int64_t k = j; k < inputs; ++k) rest[k - j] = widen(x[k]) * (input_scale == nullptr ? 1.0f : input_scale[k]);
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) values[n] = V::mul(V::load(rest + n * V::width), factor);
    D::quantise(values, *zero_point, to + j);
  }
}

template <class D, class V>
void prepare_int8(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  uint8_t* out = reinterpret_cast<uint8_t*>(prepared.data) + to * prepared.stride;
  const int64_t padded = prepared.groups * D::x_bytes;
  if (in.x_dtype == Dtype::fp32) {
    prepare_int8_row<D, V>(static_cast<const float*>(in.x) + row * in.inputs, in.input_scale, in.inputs, padded, out,
                           prepared.scale + to, prepared.zero_point + to);
  } else {
    prepare_int8_row<D, V>(static_cast<const Bf16*>(in.x) + row * in.inputs, in.input_scale, in.inputs, padded, out,
                           prepared.scale + to, prepared.zero_point + to);
  }
}

}  // namespace
