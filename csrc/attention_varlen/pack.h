// Packing of the attention kernels' operands, for vector classes V (csrc/simd/) and storage type T (float, Bf16).
//
// Rows of q, k and v of one head lie far apart: a fused qkv row of all heads is between them. So a task first packs
// them into fp32 scratch.
#pragma once

#include "attention_varlen/kernels.h"
#include "bf16.h"
#include "simd/gemm.h"

namespace {

using glimodern::AttentionInputs;
using glimodern::AttentionRows;
using glimodern::row_of;

// Prefetches a token's elements of one head: those of the next task (rows lie pages apart, which no hardware prefetcher
// follows), or, if kWrite, those of the task's own results. Inlined: GCC removes calls of a function that only
// prefetches.
template <class T, bool kWrite>
inline __attribute__((always_inline)) void prefetch(const AttentionRows& rows, int64_t token, int64_t head,
                                                    int64_t dim) {
  const T* p = row_of<T>(rows, token, head);
  for (int64_t h = 0; h < dim; h += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + h, kWrite, 2);
}

// `rows` rows of `dim` elements -> fp32 [rows, padded], times factor, zero-padded.
template <class V, class T>
void pack(const T* from, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float factor, float* to) {
  const auto scale = V::set1(factor);
  for (int64_t r = 0; r < rows; ++r, from += stride, to += padded) {
    int64_t h = 0;
    for (; h + V::width <= dim; h += V::width) V::store(to + h, V::mul(scale, V::loadu(from + h)));
    for (; h < dim; ++h) to[h] = factor * widen(from[h]);
    for (; h < padded; ++h) to[h] = 0.0f;
  }
}

// V::width rows of `dim` elements, of which `count` exist, transposed: element h of row(r) at to[h * stride + r], or 0.
template <class V, class Row>
inline __attribute__((always_inline)) void transpose_rows(const Row& row, int64_t count, int64_t dim, float* to,
                                                          int64_t stride) {
  constexpr int64_t W = V::width;
  int64_t h = 0;
  for (; h + W <= dim; h += W) {
    typename V::F x[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) x[r] = r < count ? V::loadu(row(r) + h) : V::zero();
    V::transpose(x);
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) V::store(to + (h + r) * stride, x[r]);
  }
  for (; h < dim; ++h) {
    for (int64_t r = 0; r < W; ++r) to[h * stride + r] = r < count ? widen(row(r)[h]) : 0.0f;
  }
}

// The same rows as in pack() transposed, as the B operand of gemm(): panels [dim, panel_columns] with rows as lanes,
// zero-padded.
template <class V, class T>
void pack_transposed(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to) {
  constexpr int64_t W = V::width, G = panel_columns<V>();
  for (int64_t r0 = 0; r0 < rows; r0 += W) {
    transpose_rows<V>([&](int64_t r) { return from + (r0 + r) * stride; }, min(W, rows - r0), dim,
                      to + r0 / G * dim * G + r0 % G, G);
  }
}

// Two rows per row, as the B operand of a gemm() of bf16 pairs: [(rows + 1) / 2, padded] with pairs (row 2 n, row
// 2 n + 1) as lanes, zero-padded.
template <class V>
void pack_pairs(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float* to) {
  constexpr int64_t W = V::width;
  const Bf16 zeros[W] = {};
  for (int64_t r = 0; r < rows; r += 2, from += 2 * stride, to += padded) {
    const bool two = r + 1 < rows;
    int64_t h = 0;
    for (; h + W <= dim; h += W) V::store(to + h, V::interleave(from + h, two ? from + stride + h : zeros));
    if (h == dim) continue;
    Bf16 first[W] = {}, second[W] = {};
    for (int64_t n = 0; h + n < dim; ++n) {
      first[n] = from[h + n];
      if (two) second[n] = from[stride + h + n];
    }
    V::store(to + h, V::interleave(first, second));
  }
}

// Whether q and k can be read as pairs of bf16 elements.
inline bool readable_as_pairs(const AttentionInputs& in) {
  const auto even = [](const AttentionRows& rows) {
    return rows.row % 2 == 0 && rows.head % 2 == 0 && reinterpret_cast<uintptr_t>(rows.data) % sizeof(float) == 0;
  };
  return in.head_dim % 2 == 0 && even(in.q) && even(in.k);
}

// fp32 [rows, padded], times factor -> `rows` rows of `dim` elements.
template <class V, class T>
void unpack(const float* from, int64_t padded, int64_t rows, int64_t dim, float factor, T* to, int64_t stride) {
  const auto scale = V::set1(factor);
  for (int64_t r = 0; r < rows; ++r, from += padded, to += stride) {
    int64_t h = 0;
    for (; h + V::width <= dim; h += V::width) V::storeu(to + h, V::mul(scale, V::load(from + h)));
    for (; h < dim; ++h) narrow(factor * from[h], to + h);
  }
}

}  // namespace
