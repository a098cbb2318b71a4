// The steps of token_scores around its matrix product, for every vector class V (csrc/simd/).
#pragma once

#include "dropout_mask.h"
#include "integer_math.h"
#include "simd/rows.h"
#include "token_scores/kernels.h"

namespace {

using glimodern::TokenHidden;
using glimodern::TokenPairs;

template <class V, class T, class Product>
void pair_products(const TokenPairs<T>& in, int64_t begin, int64_t end, Product* products) {
  for (int64_t pair = begin; pair < end; ++pair, products += in.width) {
    const T* x = in.x + in.word[pair] * in.width;
    const T* y = in.y + in.type[pair] * in.width;
    for_each_vector<V>(in.width,
                       [&](int64_t j, auto io) { io.store(products + j, V::mul(io.load(x + j), io.load(y + j))); });
  }
}

// R pairs at a time share the loads of W2.
template <class V, int R, class T>
void logits_of(const TokenPairs<T>& in, int64_t pair, const float* sums) {
  using F = typename V::F;
  const T* a[R];
  const T* b[R];
  uint32_t key[R];
  F total[3 * R];
  for (int r = 0; r < R; ++r) {
    a[r] = in.a + in.word[pair + r] * in.hidden;
    b[r] = in.b + in.type[pair + r] * in.hidden;
    key[r] = dropout_key(static_cast<uint64_t>(pair + r), in.dropout.seed);
    for (int n = 0; n < 3; ++n) total[3 * r + n] = V::zero();
  }
  const auto threshold = V::set1(in.dropout.threshold);
  const F scale = V::set1(static_cast<float>(in.dropout.keep_scale));
  for_each_vector<V>(in.hidden, [&](int64_t h, auto io) {
    F hidden[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F z = V::add(io.load(sums + r * in.hidden + h), V::add(io.load(a[r] + h), io.load(b[r] + h)));
      hidden[r] = V::max(V::zero(), z);
      if (in.dropout.enabled) {
        const auto hash = mix32_lanes<V>(column_counters<V>(key[r], h));
        hidden[r] = V::where_at_least(hash, threshold, V::mul(scale, hidden[r]));
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < 3; ++n) {
      const F w = io.load(in.w2 + n * in.hidden + h);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) total[3 * r + n] = V::fma(hidden[r], w, total[3 * r + n]);
    }
  });
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < 3; ++n) {
      in.logits[3 * (pair + r) + n] = static_cast<float>(V::reduce_add(total[3 * r + n]) + in.b2[n]);
    }
  }
}

template <class V, class T>
void pair_logits(const TokenPairs<T>& in, int64_t begin, int64_t end, const float* sums) {
  int64_t pair = begin;
  for (; pair + 2 <= end; pair += 2) logits_of<V, 2>(in, pair, sums + (pair - begin) * in.hidden);
  if (pair < end) logits_of<V, 1>(in, pair, sums + (pair - begin) * in.hidden);
}

template <class V>
void hidden_gradients(const TokenHidden& in, int64_t begin, int64_t end) {
  using F = typename V::F;
  const auto threshold = V::set1(in.dropout.threshold);
  const F scale = V::set1(static_cast<float>(in.dropout.keep_scale));
  for (int64_t pair = begin; pair < end; ++pair) {
    const float* a = in.a + pair / in.types * in.hidden;
    const float* b = in.b + pair % in.types * in.hidden;
    float* values = in.values + pair * in.hidden;
    float* dz = in.dz + pair * in.hidden;
    const uint32_t key = dropout_key(static_cast<uint64_t>(in.first + pair), in.dropout.seed);
    const float* g = in.grad + 3 * pair;
    const F grad[3] = {V::set1(g[0]), V::set1(g[1]), V::set1(g[2])};
    for_each_vector<V>(in.hidden, [&](int64_t h, auto io) {
      const F z = V::add(io.load(values + h), V::add(io.load(a + h), io.load(b + h)));
      F hidden = V::max(V::zero(), z);
      F back = V::mul(grad[0], io.load(in.w2 + h));
      back = V::fma(grad[1], io.load(in.w2 + in.hidden + h), back);
      back = V::where_positive(z, V::fma(grad[2], io.load(in.w2 + 2 * in.hidden + h), back));
      if (in.dropout.enabled) {
        const auto hash = mix32_lanes<V>(column_counters<V>(key, h));
        hidden = V::where_at_least(hash, threshold, V::mul(scale, hidden));
        back = V::where_at_least(hash, threshold, V::mul(scale, back));
      }
      io.store(values + h, hidden);
      io.store(dz + h, back);
    });
  }
}

}  // namespace
