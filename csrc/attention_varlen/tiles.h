// The tiled attention kernels, written once for every vector class V (csrc/simd/) and storage type T (float, Bf16).
//
// Everything is in an unnamed namespace: each instruction set's file compiles its own copy with its own flags, and no
// linker may merge them. For the same reason nothing here instantiates code of the standard library.
//
// Rows of q, k and v lie far apart (a fused qkv row of all heads between them), so a task first packs what it needs of
// one head into fp32 scratch; all sums are matrix products of csrc/simd/product.h. Lanes are keys in S = Q K^T and
// dP = dO V^T (whose right sides are packed transposed), elements of a head in the others.
// Forward: V::product_rows queries at a time against all keys in scratch: S, softmax, P V. Where a query's keys do not
// fit scratch at once, softmax's maximum and sum are carried from block to block (https://arxiv.org/abs/2205.14135).
// Backward: a block of keys at a time, against blocks of queries: P again from S and logsumexp.
#pragma once

#include "attention_varlen/kernels.h"
#include "bf16.h"
#include "dropout.h"
#include "simd/exp.h"
#include "simd/product.h"

namespace {

using glimodern::AttentionGrads;
using glimodern::AttentionInputs;
using glimodern::AttentionRows;
using glimodern::AttentionTask;

// Keys in scratch at a time forward: few, so that a product finds its operands in the first cache, but all of a task's
// if a window limits what each query sees.
constexpr int64_t kForwardKeys = 128, kWindowKeys = 512;
constexpr int64_t kBackwardKeys = 128;    // in scratch at a time ...
constexpr int64_t kBackwardQueries = 64;  // ... with so many queries: 290 KB with 64 dimensions
constexpr int kRowTiles =
    5;  // tiles of queries that share a pass over the keys; one with a window: it covers what any sees
constexpr int64_t kPieces = 12;  // of scratch at most, each rounded up to 16 floats
constexpr int64_t kSkew = 16;    // floats between rows of scores, so that they do not share cache sets

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t parts_of(int64_t n, int64_t most) { return (n + most - 1) / most; }

template <class V>
int64_t padded_dim(const AttentionInputs& in) {
  return round_up(in.head_dim, V::width);
}

template <class V>
size_t forward_scratch(const AttentionInputs& in, int64_t longest) {
  const int64_t dim = padded_dim<V>(in), queries = smaller(longest, glimodern::kTaskQueries);
  const int64_t keys = round_up(smaller(longest, in.window < longest ? kWindowKeys : kForwardKeys), group_columns<V>());
  return static_cast<size_t>(queries * (2 * dim + 2) + 2 * keys * dim + kRowTiles * V::product_rows * (keys + kSkew) +
                             16 * kPieces);
}

template <class V>
size_t backward_scratch(const AttentionInputs& in, int64_t longest) {
  const int64_t dim = padded_dim<V>(in), queries = smaller(longest, kBackwardQueries);
  const int64_t keys = round_up(smaller(longest, kBackwardKeys), group_columns<V>());
  return static_cast<size_t>(longest * dim + queries * (2 * dim + 1) + 5 * keys * dim + 2 * queries * (keys + kSkew) +
                             16 * kPieces);
}

// Hands out 64-byte aligned pieces of a thread's scratch.
struct Pieces {
  float* next;
  float* take(int64_t floats) {
    float* piece = next;
    next += round_up(floats, 16);
    return piece;
  }
};

template <class T>
const T* first_row(const AttentionRows& rows, int64_t token, int64_t head) {
  return static_cast<const T*>(rows.data) + token * rows.row + head * rows.head;
}

// Asks for a token's elements of one head: the next task's, so that they are near when it packs them (rows lie pages
// apart, which no hardware prefetcher follows), or (kWrite) the task's own results. Inlined: GCC drops the call of a
// function that does nothing else.
template <class T, bool kWrite>
inline __attribute__((always_inline)) void fetch(const AttentionRows& from, int64_t token, int64_t head, int64_t dim) {
  const T* p = first_row<T>(from, token, head);
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

// The same rows transposed, as product()'s right side: groups of [dim, group_columns] with lanes over rows,
// zero-padded.
template <class V, class T>
void pack_transposed(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to) {
  constexpr int64_t W = V::width, G = group_columns<V>();
  for (int64_t r0 = 0; r0 < rows; r0 += W) {
    const int64_t count = smaller(W, rows - r0);
    float* group = to + r0 / G * dim * G + r0 % G;
    int64_t h = 0;
    for (; h + W <= dim; h += W) {
      typename V::F x[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) x[r] = r < count ? V::loadu(from + (r0 + r) * stride + h) : V::zero();
      V::transpose(x);
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) V::store(group + (h + r) * G, x[r]);
    }
    for (; h < dim; ++h) {
      for (int64_t r = 0; r < W; ++r) group[h * G + r] = r < count ? widen(from[(r0 + r) * stride + h]) : 0.0f;
    }
  }
}

// Rows two by two, as product()'s right side of pairs: [(rows + 1) / 2, padded], lanes of (row 2 n, row 2 n + 1),
// zero-padded.
template <class V>
void pack_pairs(const Bf16* from, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float* to) {
  constexpr int64_t W = V::width;
  const Bf16 nothing[W] = {};
  for (int64_t r = 0; r < rows; r += 2, from += 2 * stride, to += padded) {
    const bool two = r + 1 < rows;
    int64_t h = 0;
    for (; h + W <= dim; h += W) V::store(to + h, V::interleave(from + h, two ? from + stride + h : nothing));
    if (h == dim) continue;
    Bf16 first[W] = {}, second[W] = {};
    for (int64_t n = 0; h + n < dim; ++n) {
      first[n] = from[h + n];
      if (two) second[n] = from[stride + h + n];
    }
    V::store(to + h, V::interleave(first, second));
  }
}

// Whether q and k can be read as pairs of bf16 numbers.
inline bool in_pairs(const AttentionInputs& in) {
  const auto even = [](const AttentionRows& rows) {
    return rows.row % 2 == 0 && rows.head % 2 == 0 && reinterpret_cast<uintptr_t>(rows.data) % sizeof(float) == 0;
  };
  return in.head_dim % 2 == 0 && even(in.q) && even(in.k);
}

template <class V, class T>
void unpack(const float* from, int64_t padded, int64_t rows, int64_t dim, float factor, T* to, int64_t stride) {
  const auto scale = V::set1(factor);
  for (int64_t r = 0; r < rows; ++r, from += padded, to += stride) {
    int64_t h = 0;
    for (; h + V::width <= dim; h += V::width) V::storeu(to + h, V::mul(scale, V::load(from + h)));
    for (; h < dim; ++h) narrow(factor * from[h], to + h);
  }
}

template <class V, class T>
float dot(const float* x, const T* y, int64_t n) {
  auto sum = V::zero();
  int64_t h = 0;
  for (; h + V::width <= n; h += V::width) sum = V::fma(V::load(x + h), V::loadu(y + h), sum);
  double rest = 0.0;
  for (; h < n; ++h) rest += x[h] * widen(y[h]);
  return static_cast<float>(V::sum(sum) + rest);
}

template <class V>
void clear(float* p, int64_t n) {
  for (int64_t h = 0; h < n; h += V::width) V::store(p + h, V::zero());
}

template <class V>
void scale_row(float factor, int64_t c0, int64_t c1, float* row) {
  for (int64_t j = c0; j < c1; j += V::width) V::store(row + j, V::mul(V::set1(factor), V::load(row + j)));
}

// Columns of a block of keys.
struct Columns {
  int64_t first, last;
};

// The keys of [k0, k1) that queries [q0, q1) see, counted from k0; empty if first >= last.
inline Columns seen(const AttentionInputs& in, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
  return {larger(k0, q0 - in.window) - k0, smaller(k1, q1 + in.window) - k0};
}

// row[j] <- -inf for columns j of [c0, c1) that are not seen. c0 and c1 are multiples of V::width.
template <class V>
void hide(const Columns& see, int64_t c0, int64_t c1, float* row) {
  const auto count = V::set1(static_cast<uint32_t>(larger(see.last - see.first, 0)));
  const auto lanes = V::add(V::lanes(), V::set1(static_cast<uint32_t>(-see.first)));
  const auto nothing = V::set1(-__builtin_inff());
  const auto edge = [&](int64_t j) {
    const auto column = V::add(lanes, V::set1(static_cast<uint32_t>(j)));
    V::store(row + j, V::where_below(column, count, V::load(row + j), nothing));
  };
  for (int64_t j = c0; j < smaller(see.first, c1); j += V::width) edge(j);
  for (int64_t j = larger(c0, see.last / V::width * V::width); j < c1; j += V::width) edge(j);
}

// Which probabilities of one query are kept: the vector of columns j .. j + width - 1.
template <class V>
struct Keep {
  typename V::I first, bound;

  // k0: the first column's place in its text.
  Keep(const AttentionInputs& in, const AttentionTask& task, int64_t query, int64_t k0)
      : bound(V::set1(in.drop_below)) {
    first = column_counters<V>(dropout_key(static_cast<uint64_t>(query * in.heads + task.head), in.seed), k0);
  }

  typename V::F kept(int64_t j, typename V::F x) const {  // else 0
    const auto counter = V::add(first, V::set1(static_cast<uint32_t>(j) * kGolden));
    return V::where_at_least(mix32_lanes<V>(counter), bound, x);
  }
};

// log2(e) x, and what rounding adds to it, as an exponent of e: e^(x - m) = 2^(log2(e) x - scaled(m)) e^excess(m).
inline float scaled(float x) { return kLog2E * x; }
inline float excess(float x) { return kLn2 * __builtin_fmaf(-kLog2E, x, scaled(x)); }

// Softmax of R queries' scores, rows `stride` apart, in columns [c0, c1): row[j] <- 2^(log2(e) row[j] - scaled(max)),
// with max[r] raised to the row's largest; sum[r] <- the row's sum. Queries side by side hide what a row waits for.
template <class V, int R>
void weigh(float* row, int64_t stride, int64_t c0, int64_t c1, float* max, float* sum) {
  const auto scale = V::set1(kLog2E);
  typename V::F shift[R], total[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) shift[r] = V::set1(max[r]), total[r] = V::zero();
  for (int64_t j = c0; j < c1; j += V::width) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) shift[r] = V::max(shift[r], V::load(row + r * stride + j));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    max[r] = V::largest(shift[r]);
    shift[r] = V::set1(max[r] == -__builtin_inff() ? 0.0f : scaled(max[r]));  // no key of this block is seen
  }
  for (int64_t j = c0; j < c1; j += V::width) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto p = exp2_weight<V>(V::fms(scale, V::load(row + r * stride + j), shift[r]));
      total[r] = V::add(total[r], p);
      V::store(row + r * stride + j, p);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = static_cast<float>(V::sum(total[r]));
}

template <class V, class P>
constexpr bool kSame = false;
template <class V>
constexpr bool kSame<V, V> = true;

// P: the vector class of the products. Another than V multiplies pairs of bf16 numbers: q and k as they are stored,
// probabilities rounded.
template <class V, class T, class P = V>
void attention_forward(const AttentionInputs& in, const AttentionTask& task, T* out, float* lse, float* scratch) {
  constexpr int64_t W = V::width, G = group_columns<V>();
  constexpr bool kPairs = !kSame<V, P>;
  const int64_t dim = padded_dim<V>(in), queries = task.q1 - task.q0;
  const int64_t lo = larger(task.start, task.q0 - in.window), hi = smaller(task.end, task.q1 + in.window);
  const bool windowed = in.window < task.end - task.start;
  const int64_t blocks = parts_of(hi - lo, windowed ? kWindowKeys : kForwardKeys);
  const int batch = V::product_rows * (windowed ? 1 : kRowTiles);
  const int64_t widest = round_up(parts_of(hi - lo, blocks), G), stride = widest + kSkew;
  Pieces pieces{scratch};
  float* q = pieces.take(queries * dim);
  float* sums = pieces.take(queries * dim);
  float* max = pieces.take(queries);
  float* total = pieces.take(queries);
  float* kt = pieces.take(widest * dim);
  float* v = pieces.take(widest * dim);
  float* s = pieces.take(batch * stride);

  const AttentionRows results{out, in.heads * in.head_dim, in.head_dim};
  const AttentionRows* const nexts[] = {&in.q, &in.k, &in.v};
  int64_t ahead = task.q0;
  const auto fetch_a_token = [&] {
    if (ahead == task.q1) return;
    fetch<T, true>(results, ahead, task.head, in.head_dim);
    for (const AttentionRows* next : nexts) {
      if (task.head + 1 < in.heads) fetch<T, false>(*next, ahead, task.head + 1, in.head_dim);
    }
    ++ahead;
  };
  const T* first_query = first_row<T>(in.q, task.q0, task.head);
  const int64_t depth = kPairs ? in.head_dim / 2 : in.head_dim;  // steps of Q K^T
  Left left{q, dim};
  if constexpr (kPairs) {
    left = {reinterpret_cast<const float*>(first_query), in.q.row / 2};
  } else {
    pack<V>(first_query, in.q.row, queries, in.head_dim, dim, static_cast<float>(in.scale), q);
  }
  for (int64_t i = 0; i < queries; ++i) {
    max[i] = -__builtin_inff();
    total[i] = 0.0f;
  }
  if (blocks > 1) clear<V>(sums, queries * dim);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = lo + (hi - lo) * block / blocks, k1 = lo + (hi - lo) * (block + 1) / blocks;
    const T *first_key = first_row<T>(in.k, k0, task.head), *first_value = first_row<T>(in.v, k0, task.head);
    if constexpr (kPairs) {
      pack_transposed<V>(reinterpret_cast<const float*>(first_key), in.k.row / 2, k1 - k0, depth, kt);
      pack_pairs<V>(first_value, in.v.row, k1 - k0, in.head_dim, dim, v);
    } else {
      pack_transposed<V>(first_key, in.k.row, k1 - k0, in.head_dim, kt);
      pack<V>(first_value, in.v.row, k1 - k0, in.head_dim, dim, 1.0f, v);
    }
    for (int64_t i = 0, rows = 0; i < queries; i += rows) {
      rows = tile_rows(queries - i, batch);
      const Columns tile = seen(in, task.q0 + i, task.q0 + i + rows, k0, k1);
      if (tile.first >= tile.last) continue;
      const int64_t c0 = tile.first / G * G, c1 = round_up(tile.last, W);
      product<P, false>(rows, c1 - c0, depth, {left.data + i * left.stride, left.stride},
                        {kt + c0 * depth, G * depth, G}, s + c0, stride, false, fetch_a_token);
      for (int64_t r = 0; r < rows && kPairs; ++r) scale_row<V>(static_cast<float>(in.scale), c0, c1, s + r * stride);
      for (int64_t r = 0; r < rows; ++r) {
        const Columns see = seen(in, task.q0 + i + r, task.q0 + i + r + 1, k0, k1);
        hide<V>(see, c0, c1, s + r * stride);
      }
      for (int64_t r = 0, n = 0; r < rows; r += n) {
        constexpr int R = 4;
        n = rows - r < R ? 1 : R;
        float *row = s + r * stride, *now = max + i + r, before[R], sum[R];
        for (int m = 0; m < n; ++m) before[m] = now[m];
        if (n == R) {
          weigh<V, R>(row, stride, c0, c1, now, sum);
        } else {
          weigh<V, 1>(row, stride, c0, c1, now, sum);
        }
        for (int m = 0; m < n; ++m) {
          const int64_t query = i + r + m;
          if (in.dropout) {
            const Keep<V> keep(in, task, task.q0 + query, k0 - task.start);
            float* p = row + m * stride;
            for (int64_t j = c0; j < c1; j += W) V::store(p + j, keep.kept(j, V::load(p + j)));
          }
          if constexpr (kPairs) {
            float* p = row + m * stride;  // its bf16 numbers from its beginning
            for (int64_t j = c0; j < c1; j += W) V::storeu(reinterpret_cast<Bf16*>(p) + j, V::load(p + j));
          }
          if (before[m] != now[m] && total[query] != 0.0f) {  // what earlier blocks left has another maximum
            const float decay = __builtin_exp2f(scaled(before[m]) - scaled(now[m]));
            total[query] *= decay;
            scale_row<V>(decay, 0, dim, sums + query * dim);
          }
          total[query] += sum[m];
        }
      }
      const int64_t from = kPairs ? c0 / 2 : tile.first,
                    to = kPairs ? (tile.last + 1) / 2 : tile.last;  // of P V's steps
      product<P, false>(rows, dim, to - from, {s + from, stride}, {v + from * dim, G, dim}, sums + i * dim, dim,
                        blocks > 1, fetch_a_token);
    }
  }
  const int64_t tokens = in.tokens();
  const float keep_scale = in.dropout ? static_cast<float>(in.keep_scale) : 1.0f;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t token = task.q0 + i;
    if (lse != nullptr) lse[task.head * tokens + token] = max[i] + (__builtin_logf(total[i]) + excess(max[i]));
    unpack<V>(sums + i * dim, dim, 1, in.head_dim, keep_scale / total[i],
              out + (token * in.heads + task.head) * in.head_dim, 0);
  }
}

// p [c1] scores of one query -> its probabilities where kept, and 0; ds: dP -> dS = P * (dropped dP - delta).
template <class V>
void slopes(const AttentionInputs& in, const Keep<V>& keep, const Columns& see, int64_t c0, int64_t c1, float lse,
            float delta, float* p, float* ds) {
  hide<V>(see, c0, c1, p);
  const auto shift = V::set1(lse), mean = V::set1(delta), scale = V::set1(static_cast<float>(in.keep_scale));
  for (int64_t j = c0; j < c1; j += V::width) {
    const auto x = exp_weight<V>(V::sub(V::load(p + j), shift));
    auto kept = x, dx = V::load(ds + j);
    if (in.dropout) {
      kept = keep.kept(j, V::mul(scale, x));
      dx = keep.kept(j, V::mul(scale, dx));
    }
    V::store(p + j, kept);
    V::store(ds + j, V::mul(x, V::sub(dx, mean)));
  }
}

template <class V, class T>
void attention_backward(const AttentionInputs& in, const AttentionTask& task, const AttentionGrads& grads,
                        float* scratch) {
  constexpr int64_t W = V::width, G = group_columns<V>();
  const int64_t dim = padded_dim<V>(in), length = task.end - task.start, tokens = in.tokens();
  const int64_t blocks = parts_of(length, kBackwardKeys);
  const int batch = in.window < length ? V::product_rows : static_cast<int>(kBackwardKeys);  // rows of a product
  const int64_t widest = round_up(parts_of(length, blocks), G), stride = widest + kSkew;
  const int64_t tallest = smaller(length, kBackwardQueries);
  Pieces pieces{scratch};
  float* dq = pieces.take(length * dim);
  float* q = pieces.take(tallest * dim);
  float* g = pieces.take(tallest * dim);
  float* delta = pieces.take(tallest);
  float* kt = pieces.take(widest * dim);
  float* vt = pieces.take(widest * dim);
  float* k = pieces.take(widest * dim);
  float* dk = pieces.take(widest * dim);
  float* dv = pieces.take(widest * dim);
  float* p = pieces.take(tallest * stride);
  float* ds = pieces.take(tallest * stride);

  const AttentionRows* const nexts[] = {&in.q, &in.k, &in.v, &grads.grad_out, &grads.out};
  const float* lse = static_cast<const float*>(grads.lse);
  if (blocks > 1) clear<V>(dq, length * dim);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = task.start + length * block / blocks, k1 = task.start + length * (block + 1) / blocks;
    const int64_t keys = k1 - k0;
    const T* first_key = first_row<T>(in.k, k0, task.head);
    pack<V>(first_key, in.k.row, keys, in.head_dim, dim, 1.0f, k);
    pack_transposed<V>(first_key, in.k.row, keys, in.head_dim, kt);
    pack_transposed<V>(first_row<T>(in.v, k0, task.head), in.v.row, keys, in.head_dim, vt);
    const int64_t lo = larger(task.start, k0 - in.window), hi = smaller(task.end, k1 + in.window);
    const int64_t parts = parts_of(hi - lo, kBackwardQueries);
    if (parts > 1) clear<V>(dk, keys * dim), clear<V>(dv, keys * dim);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t q0 = lo + (hi - lo) * part / parts, q1 = lo + (hi - lo) * (part + 1) / parts, queries = q1 - q0;
      pack<V>(first_row<T>(in.q, q0, task.head), in.q.row, queries, in.head_dim, dim, static_cast<float>(in.scale), q);
      pack<V>(first_row<T>(grads.grad_out, q0, task.head), grads.grad_out.row, queries, in.head_dim, dim, 1.0f, g);
      for (int64_t i = 0; i < queries; ++i) {
        delta[i] = dot<V>(g + i * dim, first_row<T>(grads.out, q0 + i, task.head), in.head_dim);
      }
      for (int64_t i = 0, rows = 0; i < queries; i += rows) {
        rows = tile_rows(queries - i, batch);
        const Columns tile = seen(in, q0 + i, q0 + i + rows, k0, k1);
        float *row_p = p + i * stride, *row_ds = ds + i * stride;
        const int64_t c0 = larger(tile.first, 0) / G * G, c1 = round_up(larger(tile.last, 0), W);
        if (tile.first < tile.last) {
          product<V, false>(rows, c1 - c0, in.head_dim, {q + i * dim, dim}, {kt + c0 * in.head_dim, G * in.head_dim, G},
                            row_p + c0, stride, false);
          product<V, false>(rows, c1 - c0, in.head_dim, {g + i * dim, dim}, {vt + c0 * in.head_dim, G * in.head_dim, G},
                            row_ds + c0, stride, false);
        }
        for (int64_t r = 0; r < rows; ++r, row_p += stride, row_ds += stride) {
          const int64_t query = q0 + i + r;
          for (const AttentionRows* next : nexts) {
            if (block == 0 && task.head + 1 < in.heads) fetch<T, false>(*next, query, task.head + 1, in.head_dim);
          }
          if (tile.first >= tile.last) {
            clear<V>(row_p, round_up(keys, W));
            clear<V>(row_ds, round_up(keys, W));
            continue;
          }
          slopes<V>(in, Keep<V>(in, task, query, k0 - task.start), seen(in, query, query + 1, k0, k1), c0, c1,
                    lse[task.head * tokens + query], delta[i + r], row_p, row_ds);
          clear<V>(row_p, c0), clear<V>(row_ds, c0);  // unseen keys
          clear<V>(row_p + c1, round_up(keys, W) - c1), clear<V>(row_ds + c1, round_up(keys, W) - c1);
        }
        if (tile.first >= tile.last) continue;
        product<V, false>(rows, dim, tile.last - tile.first, {ds + i * stride + tile.first, stride},
                          {k + tile.first * dim, G, dim}, dq + (q0 - task.start + i) * dim, dim, blocks > 1);
      }
      for (int side = 0; side < 2; ++side) {  // one after the other: each finds its right side in the first cache
        const float *left = side == 0 ? p : ds, *right = side == 0 ? g : q;
        float* sums = side == 0 ? dv : dk;
        for (int64_t j = 0, rows = 0; j < keys; j += rows) {
          rows = tile_rows(keys - j, batch);
          const int64_t i0 = larger(q0, k0 + j - in.window) - q0, i1 = smaller(q1, k0 + j + rows + in.window) - q0;
          if (i0 >= i1) continue;
          product<V, true>(rows, dim, i1 - i0, {left + i0 * stride + j, stride}, {right + i0 * dim, G, dim},
                           sums + j * dim, dim, parts > 1);
        }
      }
    }
    const int64_t at = (k0 * in.heads + task.head) * in.head_dim, to = in.heads * in.head_dim;
    unpack<V>(dk, dim, keys, in.head_dim, 1.0f, static_cast<T*>(grads.grad_k) + at, to);
    unpack<V>(dv, dim, keys, in.head_dim, 1.0f, static_cast<T*>(grads.grad_v) + at, to);
  }
  unpack<V>(dq, dim, length, in.head_dim, static_cast<float>(in.scale),
            static_cast<T*>(grads.grad_q) + (task.start * in.heads + task.head) * in.head_dim, in.heads * in.head_dim);
}

}  // namespace
