// span_loss: focal binary cross-entropy over every span and type, and its gradients, without stored logits.
//
//     loss = sum of weight * sigmoid(x)^gamma * softplus(x),    x = -logit for a positive, logit for a negative
//
// Memory in addition to inputs and gradients: at most about 8 MB of scratch, 8 bytes per word and 16 per positive.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

// positives [count, 3]: (word, k, type id), word and type id counted in the whole batch; repeats count once. Each must
// be a span inside one text with a type of that text. grads null: the loss only. Deterministic: the same bits for every
// number of threads.
template <class Acc>
double span_loss(const SpanInputs&, const int64_t* positives, int64_t count, const FocalParams&,
                 const SpanGradsOf<Acc>* grads, int threads);

}  // namespace glimodern
