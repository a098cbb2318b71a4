"""token_entities: the candidate entities in the start, end and inside logits of `token_scores`; runs on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from glimodern.tagging import Columns, tagged_entities

from ._check import text_offsets
from ._span_entities import SpanEntities, check_range, check_threshold, probabilities


def token_entities(logits: Tensor, cu_words: Tensor, cu_types: Tensor, threshold: float | Tensor) -> SpanEntities:
    """Candidate entities from start, end and inside logits: those whose least probability is above a threshold.

    logits: [pairs, 3] of `token_scores`, on any device. cu_words, cu_types: int32 [texts + 1]. threshold: a probability
    in [0, 1], or a float tensor [m] of one per type.

    An entity of a type begins at a word with start > threshold and ends at a word with end > threshold; inside >=
    threshold in all of its words. Its score is the least of all these probabilities. It may have any number of words.

    Returns SpanEntities on the CPU, ordered by (text, word, type, width); no gradients. These are the candidates of
    gliner 0.2.29, whose ties between equal scores go by that order. A NaN logit is a candidate of one word with the
    score NaN. Time grows with the pairs and with the candidates, not with their words.

    Raises ValueError for logits of another shape, bad offsets, and a threshold outside [0, 1].
    """
    words, types = cu_words.tolist(), cu_types.tolist()
    text_offsets("cu_words", words, words[-1])
    text_offsets("cu_types", types, types[-1])
    columns = Columns(np.diff(words), np.diff(types))
    if logits.shape != (columns.pairs, 3):
        raise ValueError(
            f"logits: expected [{columns.pairs}, 3], which cu_words and cu_types make, got {tuple(logits.shape)}"
        )
    number, per_type = check_threshold(threshold, types[-1], logits.device)
    if per_type is not None:
        check_range(per_type)
    limits = np.full(types[-1], number, dtype=np.float32) if per_type is None else per_type.cpu().numpy()
    scores = probabilities(logits.detach().flatten()).cpu().view(-1, 3).numpy()[columns.order]
    found = tagged_entities(scores, limits, columns)
    return SpanEntities(*(torch.from_numpy(column) for column in found))
