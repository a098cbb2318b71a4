// linear_packed for every vector class V (csrc/simd/) and product D of such vectors.
//
// D: struct A, an accumulator of V::width outputs; D::step adds the products of 2 groups of inputs to a tile.
#pragma once

#include "geglu/vectors.h"
#include "linear_packed/kernels.h"
#include "simd/product.h"
#include "simd/rows.h"

namespace {

using glimodern::Activation;
using glimodern::Dtype;
using glimodern::kGroupBytes;
using glimodern::kLine;
using glimodern::kPanelColumns;
using glimodern::LinearPacked;
using glimodern::PreparedRows;
using glimodern::WeightDtype;

// Where the vector n of a tile's outputs lies in a line of its panels, `panel` bytes apart.
template <class V>
inline __attribute__((always_inline)) const char* vector_at(const char* w, int n, int64_t panel) {
  constexpr int in_panel = static_cast<int>(kPanelColumns) / V::width;
  return w + (n / in_panel) * panel + (n % in_panel) * V::width * kGroupBytes;
}

// One group after the other, each by D::add.
template <class D, class V, int R, int N>
inline __attribute__((always_inline)) void step_by_groups(const char* x, int64_t stride, const char* w, int64_t panel,
                                                          typename D::A* sum) {
#pragma GCC unroll 2
  for (int group = 0; group < 2; ++group) {
    typename D::W line[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) line[n] = D::weights(vector_at<V>(w + group * kLine, n, panel));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename D::W a = D::broadcast(x + r * stride + group * D::x_bytes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r * N + n] = D::add(a, line[n], sum[r * N + n]);
    }
  }
}

// Two groups at once, int8 without VNNI: D::products (vpmaddubsw) of each, their 16-bit sums added and then widened by
// D::widened (vpmaddwd). 3 multiplications for 8 products an output, exact because the packed weights keep the 16-bit
// sums in range.
template <class D, class V, int R, int N>
inline __attribute__((always_inline)) void step_by_two_groups(const char* x, int64_t stride, const char* w,
                                                              int64_t panel, typename D::A* sum) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const typename D::W first = D::broadcast(x + r * stride), second = D::broadcast(x + r * stride + D::x_bytes);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const typename D::W a = D::products(first, D::weights(vector_at<V>(w, n, panel)));
      const typename D::W b = D::products(second, D::weights(vector_at<V>(w + kLine, n, panel)));
      sum[r * N + n] = D::plus(sum[r * N + n], D::widened(D::plus16(a, b)));
    }
  }
}

// fp32, one FMA a group.
template <class V>
struct Fp32 {
  using A = typename V::F;
  using W = typename V::F;
  static constexpr bool int8 = false;
  static constexpr int x_bytes = 4;
  static constexpr int rows = V::product_rows, vectors = V::product_vectors;

  static A zero() { return V::zero(); }
  static A plus(A x, A y) { return V::add(x, y); }
  static A load(const float* p) { return V::load(p); }
  static void store(float* p, A x) { V::store(p, x); }
  static W weights(const char* w) { return V::loadu(reinterpret_cast<const float*>(w)); }
  static W broadcast(const char* x) { return V::set1(*reinterpret_cast<const float*>(x)); }
  static A add(W x, W w, A sum) { return V::fma(x, w, sum); }
  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, A* sum) {
    step_by_groups<Fp32, V, R, N>(x, stride, w, panel, sum);
  }
};

// bf16 without products of its own: a group's two inputs one after the other, each an FMA in fp32.
template <class V>
struct Bf16ByFma : Fp32<V> {
  using F = typename V::F;
  static constexpr int x_bytes = 8;

  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, F* sum) {
#pragma GCC unroll 4
    for (int input = 0; input < 4; ++input) {
      __asm__ volatile("" : "+r"(w));  // the next input's weights are loaded after this one's products: registers
      F line[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        F even, odd;
        V::load_even_odd(reinterpret_cast<const Bf16*>(vector_at<V>(w + input / 2 * kLine, n, panel)), &even, &odd);
        line[n] = input % 2 == 0 ? even : odd;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F a = Fp32<V>::broadcast(x + r * stride + input * sizeof(float));
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[r * N + n] = V::fma(a, line[n], sum[r * N + n]);
      }
    }
  }
};

// sums [R rows, N vectors] <- products of 2 * steps groups, steps > 0, or more ? sums + these.
// Not inlined, so that no sum loses its register to what is around the loop.
template <class D, class V, int R, int N>
__attribute__((noinline)) void packed_tile(const char* x, int64_t stride, const char* w, int64_t panel, int64_t steps,
                                           float* sums, bool more) {
  typename D::A sum[R * N];
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) sum[n] = D::zero();
  do {
    D::template step<R, N>(x, stride, w, panel, sum);
    x += 2 * D::x_bytes;
    w += 2 * kLine;
  } while (--steps > 0);
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) {
    float* to = sums + n * V::width;
    D::store(to, more ? D::plus(D::load(to), sum[n]) : sum[n]);
  }
}

template <class D, class V, int R, int N>
struct PackedTile {  // run(): packed_tile of R rows known at run time, 1 <= rows <= R
  static void run(int rows, const char* x, int64_t stride, const char* w, int64_t panel, int64_t steps, float* sums,
                  bool more) {
    if (rows == R) return packed_tile<D, V, R, N>(x, stride, w, panel, steps, sums, more);
    PackedTile<D, V, R - 1, N>::run(rows, x, stride, w, panel, steps, sums, more);
  }
};
template <class D, class V, int N>
struct PackedTile<D, V, 0, N> {
  static void run(int, const char*, int64_t, const char*, int64_t, int64_t, float*, bool) {}
};

template <class V, Activation activation>
inline __attribute__((always_inline)) typename V::F activated(typename V::F x) {
  if constexpr (activation == Activation::relu) return V::max(V::zero(), x);
  if constexpr (activation == Activation::gelu) {
    typename V::F density;
    return V::mul(x, normal_cdf<V>(x, &density));
  }
  return x;
}

// What a sum of row r and of outputs from `column` on stands for.
template <class D, class V>
inline __attribute__((always_inline)) typename V::F value_of(const LinearPacked& in, const float* sum,
                                                             const float* row_scale, const int32_t* row_zero, int r,
                                                             int64_t column) {
  typename V::F value;
  if constexpr (D::int8) {
    const auto exact = D::minus(D::load(sum), row_zero[r], in.weight_sum + column);
    value = V::mul(exact, V::mul(V::set1(row_scale[r]), V::loadu(in.scale + column)));
  } else {
    value = V::load(sum);
  }
  return V::add(value, V::loadu(in.bias + column));
}

// y <- a row's outputs from the sums of N vectors of products from `column` on; `left` of them exist.
template <class D, class V, int N, Activation activation, class T>
inline __attribute__((always_inline)) void finish_row(const LinearPacked& in, const float* sums, const float* row_scale,
                                                      const int32_t* row_zero, int r, int64_t column, int64_t left,
                                                      T* y) {
  constexpr bool pairs = activation == Activation::geglu;
  constexpr int columns = pairs ? (N + 1) / 2 : N;
  typename V::F values[N + 1], out[columns];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
    values[n] = value_of<D, V>(in, sums + n * V::width, row_scale, row_zero, r, column + n * V::width);
  values[N] = V::zero();
#pragma GCC unroll 4
  for (int n = 0; n < columns; ++n) {
    if constexpr (pairs) {
      typename V::F gate, value;
      V::split8(values[2 * n], values[2 * n + 1], &gate, &value);
      out[n] = V::mul(activated<V, Activation::gelu>(gate), value);
    } else {
      out[n] = activated<V, activation>(values[n]);
    }
  }
  if (left >= columns * V::width) {
    if constexpr (columns == 2) {
      V::storeu2(y, out[0], out[1]);
    } else {
      for (int n = 0; n < columns; ++n) V::storeu(y + n * V::width, out[n]);
    }
    return;
  }
  for (int n = 0; n < columns && left > 0; ++n, left -= V::width) {
    if (left >= V::width) {
      V::storeu(y + n * V::width, out[n]);
    } else {
      Part<V>{left}.store(y + n * V::width, out[n]);
    }
  }
}

// y [rows, what N vectors of products from `column` on make] from their sums.
template <class D, class V, int N, Activation activation, class T>
void finish(const LinearPacked& in, const float* sums, int rows, const float* row_scale, const int32_t* row_zero,
            int64_t row, int64_t column) {
  constexpr int64_t products = kPanelColumns / (activation == Activation::geglu ? 8 : 16);  // of an output
  constexpr int64_t most = N * V::width / products;
  const int64_t first = column / products, left = in.outputs - first < most ? in.outputs - first : most;
  T* y = static_cast<T*>(in.y) + row * in.outputs + first;
  for (int r = 0; r < rows; ++r, y += in.outputs, sums += N * V::width)
    finish_row<D, V, N, activation>(in, sums, row_scale, row_zero, r, column, left, y);
}

using Finish = void (*)(const LinearPacked&, const float* sums, int rows, const float* row_scale,
                        const int32_t* row_zero, int64_t row, int64_t column);

template <class D, class V, int N, class T>
Finish finish_of(Activation activation) {
  if (activation == Activation::relu) return finish<D, V, N, Activation::relu, T>;
  if (activation == Activation::gelu) return finish<D, V, N, Activation::gelu, T>;
  if (activation == Activation::geglu) return finish<D, V, N, Activation::geglu, T>;
  return finish<D, V, N, Activation::none, T>;
}

template <class D, class V, int N>
Finish finish_of(const LinearPacked& in) {
  return in.y_dtype == Dtype::fp32 ? finish_of<D, V, N, float>(in.activation) : finish_of<D, V, N, Bf16>(in.activation);
}

// Rows [row, row + rows) of a block with N vectors of outputs, chunk after chunk of inputs, so that a chunk of the
// panels stays in the first cache; meanwhile the next chunk is fetched. Sums by chunks also lose fewer digits in fp32.
template <class D, class V, int N>
void multiply_panels(const LinearPacked& in, const char* x, int64_t stride, const float* row_scale,
                     const int32_t* row_zero, int64_t row, int64_t rows, int64_t panel, bool more, float* scratch) {
  constexpr int64_t panels = N * V::width / kPanelColumns;
  const int64_t pairs = glimodern::packed_groups(in) / 2, bytes = pairs * 2 * kLine;
  const int64_t most = glimodern::half_level1() / (2 * kLine * panels);
  const int64_t chunks = (pairs + most - 1) / most;
  const char* w = static_cast<const char*>(in.weight) + panel * bytes;
  const Finish finish_tile = finish_of<D, V, N>(in);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = pairs * chunk / chunks, end = pairs * (chunk + 1) / chunks;
    const char* from = w + begin * 2 * kLine;
    const bool last = chunk + 1 >= chunks;
    const char* next = last ? w + panels * bytes : w + end * 2 * kLine;
    const int64_t next_lines = last && !more ? 0 : (end - begin) * 2;
    for (int64_t done = 0; done < rows;) {
      const int tile = tile_rows(rows - done, D::rows);
      for (int64_t line = next_lines * done / rows; line < next_lines * (done + tile) / rows; ++line) {
        for (int64_t p = 0; p < panels; ++p) __builtin_prefetch(next + p * bytes + line * kLine, 0, 2);
      }
      float* sums = scratch + (chunks > 1 ? done * N * V::width : 0);
      PackedTile<D, V, D::rows, N>::run(tile, x + done * stride + begin * 2 * D::x_bytes, stride, from, bytes,
                                        end - begin, sums, chunk > 0);
      if (last) {
        finish_tile(in, sums, tile, D::int8 ? row_scale + done : nullptr, D::int8 ? row_zero + done : nullptr,
                    row + done, panel * kPanelColumns);
      }
      done += tile;
    }
  }
}

template <class D, class V>
void multiply(const LinearPacked& in, const PreparedRows& prepared, int64_t from, int64_t begin, int64_t end,
              int64_t panel, int64_t last, float* scratch) {
  constexpr int in_panel = static_cast<int>(kPanelColumns) / V::width, panels = D::vectors / in_panel;
  const int64_t most = glimodern::block_rows(prepared.stride, D::rows);
  for (int64_t row = begin; row < end; row += most) {
    const int64_t rows = end - row < most ? end - row : most;
    const char* x = prepared.data + (row - from) * prepared.stride;
    const float* scale = D::int8 ? prepared.scale + (row - from) : nullptr;
    const int32_t* zero = D::int8 ? prepared.zero + (row - from) : nullptr;
    int64_t p = panel;
    for (; p + panels <= last; p += panels) {
      multiply_panels<D, V, D::vectors>(in, x, prepared.stride, scale, zero, row, rows, p, p + 2 * panels <= last,
                                        scratch);
    }
    for (; p < last; ++p)
      multiply_panels<D, V, in_panel>(in, x, prepared.stride, scale, zero, row, rows, p, false, scratch);
  }
}

// A row in T, its numbers rounded to bf16 on the way if `round`.
template <class V, bool round, class T, class X>
void prepare_float_row(const X* x, int64_t inputs, int64_t padded, T* to) {
  for_row<V>(inputs, [=](int64_t j, auto io) {
    const typename V::F value = io.load(x + j);
    io.store(to + j, round ? V::rounded(V::plain_nan(value)) : value);
  });
  for (int64_t j = inputs; j < padded; ++j) narrow(0.0f, to + j);
}

template <class V, class T, WeightDtype dtype>
void prepare_floats(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  constexpr bool round = dtype == WeightDtype::bf16 && sizeof(T) == sizeof(float);
  T* out = reinterpret_cast<T*>(prepared.data + to * prepared.stride);
  const int64_t padded = prepared.groups * glimodern::group_inputs(dtype), first = row * in.inputs;
  if (in.x_dtype == Dtype::fp32) {
    prepare_float_row<V, round>(static_cast<const float*>(in.x) + first, in.inputs, padded, out);
  } else {
    prepare_float_row<V, false>(static_cast<const Bf16*>(in.x) + first, in.inputs, padded, out);
  }
}

// A row's numbers, its scale and its zero. D::quantise stores D::bytes numbers at once, so the stride has room for
// them.
template <class D, class V, class T>
void prepare_int8_row(const T* x, const float* input_scale, int64_t inputs, int64_t padded, uint8_t* to, float* scale,
                      int32_t* zero) {
  using F = typename V::F;
  F high = V::zero(), low = V::zero(), bad = V::zero();  // bad: NaN once x is not finite, else 0
  for_row<V>(inputs, [&](int64_t j, auto io) {
    const F value = input_scale == nullptr ? io.load(x + j) : V::mul(io.load(x + j), io.load(input_scale + j));
    high = V::max(value, high);
    low = V::max(V::sub(V::zero(), value), low);
    bad = V::fma(value, V::zero(), bad);
  });
  const bool finite = V::sum(bad) == 0.0;
  const glimodern::RowRange range = glimodern::row_range(V::largest(low), V::largest(high));
  *scale = finite ? range.scale : __builtin_nanf("");
  *zero = finite ? range.zero : 0;
  const F factor = V::set1(finite ? range.factor : 0.0f);
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
    D::quantise(values, *zero, to + j);
  }
  if (j < padded) {
    alignas(64) float rest[D::bytes] = {};
    for (int64_t k = j; k < inputs; ++k) rest[k - j] = widen(x[k]) * (input_scale == nullptr ? 1.0f : input_scale[k]);
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) values[n] = V::mul(V::load(rest + n * V::width), factor);
    D::quantise(values, *zero, to + j);
  }
}

template <class D, class V>
void prepare_int8(const LinearPacked& in, int64_t row, const PreparedRows& prepared, int64_t to) {
  uint8_t* out = reinterpret_cast<uint8_t*>(prepared.data) + to * prepared.stride;
  const int64_t padded = prepared.groups * D::x_bytes;
  if (in.x_dtype == Dtype::fp32) {
    prepare_int8_row<D, V>(static_cast<const float*>(in.x) + row * in.inputs, in.input_scale, in.inputs, padded, out,
                           prepared.scale + to, prepared.zero + to);
  } else {
    prepare_int8_row<D, V>(static_cast<const Bf16*>(in.x) + row * in.inputs, in.input_scale, in.inputs, padded, out,
                           prepared.scale + to, prepared.zero + to);
  }
}

template <class D, class V, class X>
constexpr glimodern::LinearKernels linear_kernels(Dtype as_is, decltype(glimodern::LinearKernels::prepare) prepare) {
  return {D::rows, D::vectors * V::width / kPanelColumns, 2, 1, D::x_bytes, sizeof(X), as_is, prepare, multiply<D, V>};
}

template <class V>
constexpr glimodern::LinearKernels fp32_kernels() {
  return linear_kernels<Fp32<V>, V, float>(Dtype::fp32, prepare_floats<V, float, WeightDtype::fp32>);
}

template <class V>
constexpr glimodern::LinearKernels bf16_by_fma_kernels() {
  return linear_kernels<Bf16ByFma<V>, V, float>(Dtype::fp64, prepare_floats<V, float, WeightDtype::bf16>);
}

template <class D, class V>
constexpr glimodern::LinearKernels int8_kernels() {
  return linear_kernels<D, V, uint8_t>(Dtype::fp64, prepare_int8<D, V>);
}

}  // namespace
