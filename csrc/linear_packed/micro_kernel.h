// Micro-kernels of linear_packed, for every vector class V (csrc/simd/) and dot-product type D.
//
// D multiplies one group of inputs: Fp32 and Bf16ByFma below, Int8 of the instruction sets' files. D::A is an
// accumulator of V::width outputs, D::W a vector of weights. D::step adds the products of 2 groups of inputs to a
// register tile of D::rows rows and D::vectors vectors.
#pragma once

#include <cstdint>

#include "linear_packed/kernels.h"

namespace {

using glimodern::kGroupBytes;
using glimodern::kLineBytes;
using glimodern::kPanelColumns;

// Address of vector n of a register tile's outputs in a line of its panels, which lie `panel` bytes apart.
template <class V>
inline __attribute__((always_inline)) const char* vector_at(const char* w, int n, int64_t panel) {
  constexpr int per_panel = static_cast<int>(kPanelColumns) / V::width;
  return w + (n / per_panel) * panel + (n % per_panel) * V::width * kGroupBytes;
}

// One group after the other, each by D::add.
template <class D, class V, int R, int N>
inline __attribute__((always_inline)) void step_by_groups(const char* x, int64_t stride, const char* w, int64_t panel,
                                                          typename D::A* sum) {
#pragma GCC unroll 2
  for (int group = 0; group < 2; ++group) {
    typename D::W line[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) line[n] = D::weights(vector_at<V>(w + group * kLineBytes, n, panel));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename D::W a = D::broadcast(x + r * stride + group * D::x_bytes);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r * N + n] = D::add(a, line[n], sum[r * N + n]);
    }
  }
}

// Both groups at once, for int8 without VNNI: the 16-bit products of each group (D::products: vpmaddubsw) are added,
// then widened to 32 bits (D::widen: vpmaddwd). 3 multiplications per 8 products of an output. Exact, because the
// packed weights keep the 16-bit sums in range.
template <class D, class V, int R, int N>
inline __attribute__((always_inline)) void step_by_two_groups(const char* x, int64_t stride, const char* w,
                                                              int64_t panel, typename D::A* sum) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const typename D::W first = D::broadcast(x + r * stride), second = D::broadcast(x + r * stride + D::x_bytes);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const typename D::W a = D::products(first, D::weights(vector_at<V>(w, n, panel)));
      const typename D::W b = D::products(second, D::weights(vector_at<V>(w + kLineBytes, n, panel)));
      sum[r * N + n] = D::plus(sum[r * N + n], D::widen(D::plus16(a, b)));
    }
  }
}

// fp32: one FMA per group.
template <class V>
struct Fp32 {
  using A = typename V::F;
  using W = typename V::F;
  static constexpr bool int8 = false;
  static constexpr int x_bytes = 4;
  static constexpr int rows = V::gemm_rows, vectors = V::gemm_vectors;

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

// bf16 without bf16 instructions: one fp32 FMA for each of a group's two inputs.
template <class V>
struct Bf16ByFma : Fp32<V> {
  using F = typename V::F;
  static constexpr int x_bytes = 8;

  template <int R, int N>
  static void step(const char* x, int64_t stride, const char* w, int64_t panel, F* sum) {
#pragma GCC unroll 4
    for (int input = 0; input < 4; ++input) {
      __asm__ volatile("" : "+r"(w));  // loads the next input's weights after this one's products, to save registers
      F line[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        F even, odd;
        V::load_even_odd(reinterpret_cast<const Bf16*>(vector_at<V>(w + input / 2 * kLineBytes, n, panel)), &even,
                         &odd);
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

// sums [R rows, N vectors] <- products of 2 * steps groups, steps > 0; += if accumulate. Not inlined, so that the code
// around the loop takes no registers from the accumulators.
template <class D, class V, int R, int N>
__attribute__((noinline)) void packed_micro_kernel(const char* x, int64_t stride, const char* w, int64_t panel,
                                                   int64_t steps, float* sums, bool accumulate) {
  typename D::A sum[R * N];
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) sum[n] = D::zero();
  do {
    D::template step<R, N>(x, stride, w, panel, sum);
    x += 2 * D::x_bytes;
    w += 2 * kLineBytes;
  } while (--steps > 0);
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) {
    float* to = sums + n * V::width;
    D::store(to, accumulate ? D::plus(D::load(to), sum[n]) : sum[n]);
  }
}

// run(): packed_micro_kernel of a number of rows known at run time, 1 <= rows <= R.
template <class D, class V, int R, int N>
struct PackedMicroKernel {
  static void run(int rows, const char* x, int64_t stride, const char* w, int64_t panel, int64_t steps, float* sums,
                  bool accumulate) {
    if (rows == R) return packed_micro_kernel<D, V, R, N>(x, stride, w, panel, steps, sums, accumulate);
    PackedMicroKernel<D, V, R - 1, N>::run(rows, x, stride, w, panel, steps, sums, accumulate);
  }
};
template <class D, class V, int N>
struct PackedMicroKernel<D, V, 0, N> {
  static void run(int, const char*, int64_t, const char*, int64_t, int64_t, float*, bool) {}
};

}  // namespace
