"""Fold or span vectors: what scoring costs either way, and scoring by the cheaper one.

A head that ends in a Linear (W2, b2) and a product with type vectors q can be scored in two exact ways. Multiply-adds
of the products, for s spans and m types a text, widths H (hidden) and d (of the vectors):

    fold       u = q W2, c = q b2, then relu(a_i + b_j) . u_t + c_t        m d H + s m H
    vectors    S = relu(a_i + b_j) W2^T + b2, then S . q_t                 s H d + s m d

Few types: the fold, and no vector exists. Beyond about m = d H / (H - d + d H / s), which is 4d/3 less a little for H = 4d:
the vectors. Measured on two Zen 3 cores (docs/LOG.md), 300 words, K = 12: equal at about 500 types for d = 384 and 750 for
d = 768; three times faster by vectors at 5,000. Both run near the rate of a matrix product, so multiply-adds decide.

Training asks a few dozen types of a sentence and stays on the fold (`span_loss`), whose backward pass stores nothing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern.ops._span import text_bounds
from glimodern.ops._span_entities import SpanEntities, check_threshold, logit_bounds, span_entities
from glimodern.ops._span_scores import span_scores
from glimodern.ops._span_vectors import span_vectors
from glimodern import reference

_TILE_LOGITS = 1 << 22  # that exist at a time, of a text scored by vectors: 16 MB in fp32
_LEAST_GAIN = 1.1  # vectors are made span tile by span tile in Python: not for a gain that this would eat


class ScoringCost(NamedTuple):
    """Multiply-adds of a batch's scoring."""

    fold: float
    vectors: float


def scoring_cost(words: int, types: int, texts: int, max_width: int, hidden: int, width: int) -> ScoringCost:
    """The two costs of a batch of n words and m types in so many texts, H and d; from the texts' mean, so that shapes
    alone decide and nothing waits for the device."""
    mean_words = words / max(texts, 1)
    widths = min(max_width, mean_words)
    spans = words * widths - texts * widths * (widths - 1) / 2
    pairs = spans * types / max(texts, 1)
    return ScoringCost(
        fold=types * width * hidden + pairs * hidden,
        vectors=spans * hidden * width + pairs * width,
    )


def vectors_are_cheaper(words: int, types: int, texts: int, max_width: int, hidden: int, width: int) -> bool:
    cost = scoring_cost(words, types, texts, max_width, hidden, width)
    return cost.fold > _LEAST_GAIN * cost.vectors
