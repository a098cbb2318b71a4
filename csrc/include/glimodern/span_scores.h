// span_scores: the logits of every span and type, ragged by text, and their gradients.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

// logits: text after text, each block row-major [words, K, types]; -inf for a span that leaves its text.
template <class Acc>
void span_scores_forward(const SpanInputs&, Acc* logits, int threads);

// grads <- gradients from grad_logits, in the layout of logits; entries of spans that leave their text are not read.
// Deterministic: no atomics, the same bits for every number of threads.
template <class Acc>
void span_scores_backward(const SpanInputs&, const Acc* grad_logits, const SpanGradsOf<Acc>& grads, int threads);

}  // namespace glimodern
