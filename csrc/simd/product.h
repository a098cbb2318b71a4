// C <- A B (or C + A B) of small fp32 matrices in scratch memory, for every vector class V: tiles of V::product_rows
// rows and V::product_vectors vectors of C in registers, two FMAs a cycle where B's rows lie in the first caches.
#pragma once

#include <cstdint>

namespace {

// A [rows, steps]: element (m, k) at m * stride + k, or, by columns, at k * stride + m.
struct Left {
  const float* data;
  int64_t stride;
};

// B [steps, columns] in groups of V::product_vectors vectors of columns: group n's row k at n * group + k * step.
// Aligned.
struct Right {
  const float* data;
  int64_t group, step;
};

template <class V>
constexpr int64_t group_columns() {
  return V::product_vectors * V::width;
}

template <class V, int R, int N, bool kByColumns>
void product_tile(const float* a, int64_t stride, const float* b, int64_t step, int64_t steps, float* c,
                  int64_t c_stride, bool add) {
  using F = typename V::F;
  F sum[R * N];
#pragma GCC unroll 64
  for (int n = 0; n < R * N; ++n) sum[n] = V::zero();
#pragma GCC unroll 4
  for (int64_t k = 0; k < steps; ++k) {
    F row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) row[n] = V::load(b + n * V::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F x = V::set1(kByColumns ? a[r] : a[r * stride]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r * N + n] = V::fma(x, row[n], sum[r * N + n]);
    }
    a += kByColumns ? stride : 1;
    b += step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* to = c + r * c_stride + n * V::width;
      V::store(to, add ? V::add(V::load(to), sum[r * N + n]) : sum[r * N + n]);
    }
  }
}

template <class V, int R, int N, bool kByColumns>
struct ProductRows {  // run(): product_tile of R rows known at run time, 1 <= rows <= R
  static void run(int rows, const float* a, int64_t stride, const float* b, int64_t step, int64_t steps, float* c,
                  int64_t c_stride, bool add) {
    if (rows == R) return product_tile<V, R, N, kByColumns>(a, stride, b, step, steps, c, c_stride, add);
    ProductRows<V, R - 1, N, kByColumns>::run(rows, a, stride, b, step, steps, c, c_stride, add);
  }
};
template <class V, int N, bool kByColumns>
struct ProductRows<V, 0, N, kByColumns> {
  static void run(int, const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t, bool) {}
};

// How many of `rows` rows the next tile takes: tiles of at most `most`, as equal as can be.
inline int tile_rows(int64_t rows, int most) {
  const int64_t tiles = (rows + most - 1) / most;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// All rows of a group of N vectors of columns, so that the group stays in the first cache. One vector takes tiles of
// twice the rows: as many accumulators.
template <class V, int N, bool kByColumns, class Between>
void product_group(int64_t rows, int64_t steps, Left a, const float* b, int64_t step, float* c, int64_t c_stride,
                   bool add, Between& between) {
  constexpr int most = V::product_rows * V::product_vectors / N;
  const int64_t tiles = (rows + most - 1) / most, least = rows / tiles;
  int64_t larger = rows - tiles * least;  // tiles of a row more
  for (int64_t n = 0; n < tiles; ++n, --larger) {
    const int tile = static_cast<int>(least) + (larger > 0);
    ProductRows<V, most, N, kByColumns>::run(tile, a.data, a.stride, b, step, steps, c, c_stride, add);
    between();
    a.data += kByColumns ? tile : tile * a.stride;
    c += tile * c_stride;
  }
}

// c [rows, columns] row-major, rows c_stride apart, aligned; columns a multiple of V::width. add: onto what is there.
// between() is called after every tile.
template <class V, bool kByColumns, class Between>
void product(int64_t rows, int64_t columns, int64_t steps, Left a, Right b, float* c, int64_t c_stride, bool add,
             Between between) {
  static_assert(V::product_vectors == 2, "a last group is one vector or two");
  for (; columns > V::width; columns -= group_columns<V>()) {
    product_group<V, 2, kByColumns>(rows, steps, a, b.data, b.step, c, c_stride, add, between);
    b.data += b.group;
    c += group_columns<V>();
  }
  if (columns > 0) product_group<V, 1, kByColumns>(rows, steps, a, b.data, b.step, c, c_stride, add, between);
}

template <class V, bool kByColumns>
void product(int64_t rows, int64_t columns, int64_t steps, Left a, Right b, float* c, int64_t c_stride, bool add) {
  product<V, kByColumns>(rows, columns, steps, a, b, c, c_stride, add, [] {});
}

}  // namespace
