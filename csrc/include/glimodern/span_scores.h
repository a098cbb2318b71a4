// span_scores: the logits of every span and type, ragged by text, and their gradients.
#pragma once

#include "glimodern/span.h"

namespace glimodern {

// logits: text after text, each block row-major [words, K, types]; -inf for a span that leaves its text.
template <class W>
void span_scores_forward(const SpanInputs&, W* logits, int threads);

// grads <- from grad_logits (the logits' layout; positions of spans that leave their text are not read).
// Deterministic: no atomics, the same bits for every number of threads.
template <class W>
void span_scores_backward(const SpanInputs&, const W* grad_logits, const SpanGradsOf<W>& grads, int threads);

}  // namespace glimodern
