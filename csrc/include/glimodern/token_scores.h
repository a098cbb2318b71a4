// token_scores: the start, end and inside logits of pairs of a word and a type.
//
//     logits(i, t) = W2 drop(relu(a_i + b_t + W1p (x_i * y_t))) + b2
//
// W1p is packed as linear_packed takes it, in fp32, bf16 or int8, without a bias; products x_i * y_t are rounded to
// bf16 for a weight in bf16. Everything after the product with W1p is fp32.
#pragma once

#include <cstdint>

#include "glimodern/dropout.h"
#include "glimodern/dtype.h"
#include "glimodern/linear_packed.h"

namespace glimodern {

struct TokenScores {
  Dtype dtype;          // of a, b, x and y: fp32 or bf16
  const void* a;        // [words, hidden]
  const void* b;        // [types, hidden]
  const void* x;        // [words, width]
  const void* y;        // [types, width]
  const float* w2;      // [3, hidden]
  const float* b2;      // [3]
  const int32_t* word;  // [pairs], rows of a and x
  const int32_t* type;  // [pairs], rows of b and y
  float* logits;        // [pairs, 3]
  int64_t pairs, width, hidden;
  Dropout dropout;  // of the hidden layer; its row is the pair
};

// Some words of a text and all of its types, in the backward pass: pair r is word r / types and type r % types.
struct TokenHidden {
  const float* a;     // [words, hidden]
  const float* b;     // [types, hidden]
  const float* w2;    // [3, hidden]
  const float* grad;  // [words * types, 3], of the logits
  float* values;      // [words * types, hidden]: the product with W1p in, h = drop(relu(...)) out
  float* dz;          // [words * types, hidden]: the gradient of what relu is applied to
  int64_t words, types, hidden;
  int64_t first;  // the first pair's number in the batch
  Dropout dropout;
};

// values <- h, dz <- (grad W2) [z > 0] drop, with z = values + a_i + b_t.
void token_hidden_gradients(const TokenHidden&, int threads);

// weight: W1p; only the fields of the weight are read. The result has the same bits for every number of threads, and a
// pair's bits do not depend on the other pairs.
void token_scores(const TokenScores&, const LinearPacked& weight, int threads);

}  // namespace glimodern
