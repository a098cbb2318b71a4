// span_loss: focal binary cross-entropy over every span and type, and its gradients, without stored logits.
//
//     loss = sum of weight * sigmoid(x)^gamma * softplus(x),    x = -logit for a positive, logit for a negative
//
// Memory beside inputs and gradients: at most about 8 MB of scratch, 8 bytes a word and 16 a positive.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

// positives [count, 3]: (word, k, type), word and type counted in the whole batch; repeats count once. Each must be a
// span inside one text with a type of that text. grads null: the loss only. Deterministic: the same bits for every
// number of threads.
template <class W>
double span_loss(const SpanInputs&, const int64_t* positives, int64_t count, const FocalParams&,
                 const SpanGradsOf<W>* grads, int threads);

}  // namespace glimodern
