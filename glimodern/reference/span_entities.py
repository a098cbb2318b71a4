"""The oracle of span_entities."""

import torch
from torch import Tensor

from .span import span_ends, span_scores


def probability(logits: Tensor) -> Tensor:
    """sigmoid(logit), computed in fp64 and rounded to fp32: the same bits on every backend for the same logit."""
    return torch.sigmoid(logits.double()).float()


def span_entities(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    threshold: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every (span, type) whose probability is above its type's threshold, or NaN; spans inside their texts only.

    threshold: fp32 [m], a probability in [0, 1] per type. The other arguments are those of `span_scores`.

    Returns (word, width, type, logit) of the candidates, [count] each, ordered by (text, word, width, type): word,
    width and type int64, word and type counted in the batch, for the span word..word + width; logits as span_scores'.
    """
    logits = span_scores(a, b, u, c, cu_words, cu_types, max_width)
    candidates, offset = [], 0
    words, types = cu_words.tolist(), cu_types.tolist()
    for w0, w1, t0, t1 in zip(words, words[1:], types, types[1:], strict=False):
        size = (w1 - w0) * max_width * (t1 - t0)
        block = logits[offset : offset + size].view(w1 - w0, max_width, t1 - t0)
        offset += size
        inside = span_ends(w1 - w0, max_width, a.device) < w1 - w0
        passed = ~(probability(block) <= threshold[t0:t1]) & inside[..., None]
        word, width, type_id = passed.nonzero().unbind(1)
        candidates.append((word + w0, width, type_id + t0, block[passed]))
    if not candidates:
        none = torch.empty(0, dtype=torch.int64, device=a.device)
        return none, none.clone(), none.clone(), logits
    word, width, type_id, logit = (torch.cat(column) for column in zip(*candidates, strict=True))
    return word, width, type_id, logit
