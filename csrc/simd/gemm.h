// GEMM of small fp32 matrices in scratch memory: C <- A B or C += A B, for every vector class V (csrc/simd/).
//
// The micro-kernel holds a register tile of C: V::gemm_rows rows of V::gemm_vectors vectors. It reaches two FMAs per
// cycle if the rows of B lie in L1 or L2. Lanes are columns of B and C.
#pragma once

#include <cstdint>

#include "integer_math.h"

namespace {

// A [rows, depth]: element (m, k) at m * stride + k, or, if transposed, at k * stride + m.
struct AOperand {
  const float* data;
  int64_t stride;
};

// B [depth, columns] in column panels of V::gemm_vectors vectors: vector v of row k of panel n at n * panel + v *
// vector + k * row. Aligned.
struct BOperand {
  const float* data;
  int64_t panel, row, vector;  // strides
};

template <class V>
constexpr int64_t panel_columns() {
  return V::gemm_vectors * V::width;
}

// A register tile of R rows and N vectors of C.
template <class V, int R, int N, bool kTransposedA>
void micro_kernel(const float* a, int64_t a_stride, BOperand b, int64_t depth, float* c, int64_t c_stride,
                  bool accumulate) {
  using F = typename V::F;
  F sum[R * N];
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) sum[n] = V::zero();
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    F row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) row[n] = V::load(b.data + n * b.vector);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F x = V::set1(kTransposedA ? a[r] : a[r * a_stride]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r * N + n] = V::fma(x, row[n], sum[r * N + n]);
    }
    a += kTransposedA ? a_stride : 1;
    b.data += b.row;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* to = c + r * c_stride + n * V::width;
      V::store(to, accumulate ? V::add(V::load(to), sum[r * N + n]) : sum[r * N + n]);
    }
  }
}

// run(): micro_kernel of a number of rows known at run time, 1 <= rows <= R.
template <class V, int R, int N, bool kTransposedA>
struct MicroKernel {
  static void run(int rows, const float* a, int64_t a_stride, BOperand b, int64_t depth, float* c, int64_t c_stride,
                  bool accumulate) {
    if (rows == R) return micro_kernel<V, R, N, kTransposedA>(a, a_stride, b, depth, c, c_stride, accumulate);
    MicroKernel<V, R - 1, N, kTransposedA>::run(rows, a, a_stride, b, depth, c, c_stride, accumulate);
  }
};
template <class V, int N, bool kTransposedA>
struct MicroKernel<V, 0, N, kTransposedA> {
  static void run(int, const float*, int64_t, BOperand, int64_t, float*, int64_t, bool) {}
};

// Rows of the next tile, if `rows` rows are cut into as few tiles of at most max_rows as possible, nearly equal.
inline int tile_rows(int64_t rows, int max_rows) { return static_cast<int>(ceil_div(rows, ceil_div(rows, max_rows))); }

// All rows of one panel of N vectors, so that the panel stays in L1. A single vector takes tiles of twice the rows: the
// same number of accumulators. overlap() is called after every tile.
template <class V, int N, bool kTransposedA, class Overlap>
void gemm_panel(int64_t rows, int64_t depth, AOperand a, BOperand b, float* c, int64_t c_stride, bool accumulate,
                Overlap& overlap) {
  constexpr int max_rows = V::gemm_rows * V::gemm_vectors / N;
  const int64_t tiles = ceil_div(rows, max_rows), min_tile = rows / tiles;
  int64_t longer = rows - tiles * min_tile;  // tiles of one row more
  for (int64_t n = 0; n < tiles; ++n, --longer) {
    const int tile = static_cast<int>(min_tile) + (longer > 0);
    MicroKernel<V, max_rows, N, kTransposedA>::run(tile, a.data, a.stride, b, depth, c, c_stride, accumulate);
    overlap();
    a.data += kTransposedA ? tile : tile * a.stride;
    c += tile * c_stride;
  }
}

// c [rows, columns] row-major, rows c_stride apart, aligned; columns a multiple of V::width. overlap() is called after
// every register tile, for other work in the shadow of the products.
template <class V, bool kTransposedA, class Overlap>
void gemm(int64_t rows, int64_t columns, int64_t depth, AOperand a, BOperand b, float* c, int64_t c_stride,
          bool accumulate, Overlap overlap) {
  static_assert(V::gemm_vectors == 2, "the last panel has one vector or two");
  for (; columns > V::width; columns -= panel_columns<V>()) {
    gemm_panel<V, 2, kTransposedA>(rows, depth, a, b, c, c_stride, accumulate, overlap);
    b.data += b.panel;
    c += panel_columns<V>();
  }
  if (columns > 0) gemm_panel<V, 1, kTransposedA>(rows, depth, a, b, c, c_stride, accumulate, overlap);
}

template <class V, bool kTransposedA>
void gemm(int64_t rows, int64_t columns, int64_t depth, AOperand a, BOperand b, float* c, int64_t c_stride,
          bool accumulate) {
  gemm<V, kTransposedA>(rows, columns, depth, a, b, c, c_stride, accumulate, [] {});
}

}  // namespace
