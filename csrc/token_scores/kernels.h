// The kernels of each instruction set, on pairs [begin, end); token_scores.cpp selects one.
#pragma once

#include <cstdint>

#include "bf16.h"
#include "glimodern/dropout.h"
#include "glimodern/token_scores.h"

namespace glimodern {

template <class T>  // of a, b, x and y
struct TokenPairs {
  const T* a;
  const T* b;
  const T* x;
  const T* y;
  const float* w2;
  const float* b2;
  const int32_t* word;
  const int32_t* type;
  float* logits;
  int64_t width, hidden;
  Dropout dropout;
};

// products [end - begin, width] <- x * y of each pair.
// logits [begin, end) <- W2 drop(relu(sums + a + b)) + b2, with sums [end - begin, hidden].
#define GLIMODERN_DECLARE_TOKEN_SCORES(isa, T)                                                 \
  void pair_products_##isa(const TokenPairs<T>&, int64_t begin, int64_t end, float* products); \
  void pair_products_##isa(const TokenPairs<T>&, int64_t begin, int64_t end, Bf16* products);  \
  void pair_logits_##isa(const TokenPairs<T>&, int64_t begin, int64_t end, const float* sums);

GLIMODERN_DECLARE_TOKEN_SCORES(scalar, float)
GLIMODERN_DECLARE_TOKEN_SCORES(scalar, Bf16)
GLIMODERN_DECLARE_TOKEN_SCORES(avx2, float)
GLIMODERN_DECLARE_TOKEN_SCORES(avx2, Bf16)
GLIMODERN_DECLARE_TOKEN_SCORES(avx512, float)
GLIMODERN_DECLARE_TOKEN_SCORES(avx512, Bf16)
#undef GLIMODERN_DECLARE_TOKEN_SCORES

void hidden_gradients_scalar(const TokenHidden&, int64_t begin, int64_t end);
void hidden_gradients_avx2(const TokenHidden&, int64_t begin, int64_t end);
void hidden_gradients_avx512(const TokenHidden&, int64_t begin, int64_t end);

}  // namespace glimodern
