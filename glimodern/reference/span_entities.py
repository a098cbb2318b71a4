"""The oracle of span_entities: every (span, type) whose probability passes the threshold."""

import torch
from torch import Tensor

from .span import span_scores


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
    """(word, width, type, logit) of the candidates, [count] each, ordered by (text, word, width, type).

    threshold fp32 [m], a probability in [0, 1] a type. word, width and type int64, word and type counted in the batch,
    the span is word..word + width; logits as span_scores'. A candidate's probability is above its type's threshold,
    or NaN. Spans that leave their text are none.
    """
    logits = span_scores(a, b, u, c, cu_words, cu_types, max_width)
    found, place = [], 0
    word_bounds, type_bounds = cu_words.tolist(), cu_types.tolist()
    for text in range(len(word_bounds) - 1):
        w0, t0 = word_bounds[text], type_bounds[text]
        words, types = word_bounds[text + 1] - w0, type_bounds[text + 1] - t0
        part = logits[place : place + words * max_width * types].view(words, max_width, types)
        place += part.numel()
        ends = torch.arange(words, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        passed = ~(probability(part) <= threshold[t0 : t0 + types]) & (ends < words)[..., None]
        word, width, kind = passed.nonzero().unbind(1)
        found.append((word + w0, width, kind + t0, part[passed]))
    if not found:
        none = torch.empty(0, dtype=torch.int64, device=a.device)
        return none, none.clone(), none.clone(), logits
    word, width, kind, logit = (torch.cat(column) for column in zip(*found, strict=True))
    return word, width, kind, logit
