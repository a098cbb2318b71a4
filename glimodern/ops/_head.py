"""Fold or span vectors: what scoring costs either way, and scoring by the cheaper one.

A head that ends in a Linear (W2, b2) and a product with type vectors q can be scored in two exact ways. Multiply-adds
of the products, for s spans and m types a text, widths H (hidden) and d (of the vectors):

    fold       u = q W2, c = q b2, then relu(a_i + b_j) . u_t + c_t        m d H + s m H
    vectors    S = relu(a_i + b_j) W2^T + b2, then S . q_t                 s H d + s m d

Few types: the fold, and no vector exists. Beyond m = d H / (H - d + d H / s), which is 4d/3 for H = 4d and long texts:
the vectors. Measured on two Zen 3 cores (docs/LOG.md), 300 words, K = 12: equal at about 500 types for d = 384 and at
about 750 for d = 768; three times faster by vectors at 5,000. Both run near a matrix product's rate, so multiply-adds
decide, and predict the measured ratio to a tenth.

Where u and c are known already (labels that were asked before), the fold costs s m H alone, and is the cheaper one up
to m = 4d/3 for H = 4d, however short the text.

The choice depends on the number of types a text alone (the mean, where texts are asked different types), as if every
text were of 100 words: the two ways round differently in half precision, and with the same types asked of all, a text's
scores must not depend on the texts beside it.

Training asks a few dozen types of a sentence and stays on the fold (`span_loss`), whose backward pass stores nothing.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern.reference.span import wide_product

from . import dispatch
from ._linear_packed import PackedWeight, linear_packed
from ._span import text_bounds
from ._span_entities import SpanEntities, check_threshold, scores_of, span_entities, type_bounds
from ._span_scores import span_scores
from ._span_vectors import span_vectors
from .dispatch import BF16, FP32, FP64, needs_grad

_TILE_LOGITS = 1 << 22  # that exist at a time, of a text scored by vectors: 16 MB in fp32
_WORDS = 100  # of a text, to choose by
_LEAST_GAIN = 1.1  # vectors are made span tile by span tile in Python: not for a gain that this would eat


class ScoringCost(NamedTuple):
    """Multiply-adds of a batch's scoring."""

    fold: float
    vectors: float


def scoring_cost(
    words: int, types: int, texts: int, max_width: int, hidden: int, width: int, folded: bool = False
) -> ScoringCost:
    """The two costs of a batch of n words and m types in so many texts, H and d; from the texts' mean, so that shapes
    alone decide and nothing waits for the device. folded: u and c are known."""
    mean_words = words / max(texts, 1)
    widths = min(max_width, mean_words)
    spans = words * widths - texts * widths * (widths - 1) / 2
    pairs = spans * types / max(texts, 1)
    return ScoringCost(
        fold=(0.0 if folded else types * width * hidden) + pairs * hidden,
        vectors=spans * hidden * width + pairs * width,
    )


def vectors_are_cheaper(types: int, texts: int, max_width: int, hidden: int, width: int, folded: bool = False) -> bool:
    cost = scoring_cost(_WORDS * texts, types, texts, max_width, hidden, width, folded)
    return cost.fold > _LEAST_GAIN * cost.vectors


def _sizes(w2: Tensor | PackedWeight) -> tuple[int, int]:
    """(H, d)."""
    return (w2.outputs, w2.inputs) if isinstance(w2, PackedWeight) else (w2.shape[1], w2.shape[0])


def _logit_dtype(*floats: Tensor | PackedWeight) -> torch.dtype:
    """fp64 if one of them is, else fp32."""
    return FP64 if any(isinstance(x, Tensor) and x.dtype == FP64 for x in floats) else FP32


def _product_with(kinds: Tensor, inputs: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """The product of span vectors [s, d] and type vectors kinds [m, d], [s, m] summed and returned in fp32 (or fp64).

    inputs: what the span vectors are made of. For inference in bf16 on a CPU the types are packed: PyTorch's product
    in bf16 has no fp32 result there, and its product in fp32 takes twice the time.
    """
    all_bf16 = all(x.dtype == BF16 for x in (kinds, *inputs))
    if all_bf16 and not needs_grad(kinds, *inputs) and dispatch.can_run("linear_packed", "cpp", kinds):
        packed = PackedWeight.pack(kinds, dtype="bf16")
        return lambda vectors: linear_packed(vectors, packed, dtype=FP32)
    return lambda vectors: wide_product(vectors, kinds)


def _vector_logits(
    a: Tensor,
    b: Tensor,
    w2: Tensor | PackedWeight,
    b2: Tensor,
    q: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(text, spans int64 [s, 2] of it, their logits fp32 or fp64 [s, the text's types]), all spans inside their texts,
    in order."""
    w2 = w2.unpack().T.to(a.dtype) if isinstance(w2, PackedWeight) else w2
    word_bounds, first_types = text_bounds("cu_words", cu_words, len(a)), text_bounds("cu_types", cu_types, len(q))
    widths = torch.arange(max_width, device=a.device)
    for text, (w0, w1) in enumerate(zip(word_bounds, word_bounds[1:], strict=False)):
        kinds = q[first_types[text] : first_types[text + 1]]
        if not len(kinds):
            continue
        spans = torch.cartesian_prod(torch.arange(w0, w1, device=a.device), widths)
        spans = spans[spans.sum(1) < w1]
        product = _product_with(kinds, (a, b, w2, b2))
        for tile in spans.split(max(1, _TILE_LOGITS // len(kinds))):
            yield text, tile, product(span_vectors(a, b, w2, b2, cu_words, max_width, tile))


def fold_types(q: Tensor, w2: Tensor | PackedWeight, b2: Tensor) -> tuple[Tensor, Tensor]:
    """u = q w2 [m, H] and c = q b2 [m]. A packed w2 gives a type the same u and c whatever the others are."""
    if isinstance(w2, PackedWeight):
        c = (q.float() * b2.float()).sum(1).to(q.dtype)  # a library's q @ b2 sums in an order that depends on len(q)
        return linear_packed(q, w2), c
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not dispatch.native_bf16(q.device):
        u = q.float() @ w2.float()  # PyTorch's own product in bf16 runs at 0.3 GFLOP/s there
        return u.to(q.dtype), q @ b2
    return q @ w2, q @ b2


def head_scores(
    a: Tensor,
    b: Tensor,
    w2: Tensor | PackedWeight,
    b2: Tensor,
    q: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
) -> Tensor:
    """`span_scores` of a head whose w2 [d, H], b2 [d] and type vectors q [m, d] are known: by fold or by span vectors.

    a, b [n, H], cu_words, cu_types, max_width and the result as in `span_scores`; differentiable. For inference w2 may
    be packed: `PackedWeight.pack` of its transpose [H, d].
    """
    if not vectors_are_cheaper(len(q), len(cu_words) - 1, max_width, *_sizes(w2)):
        return span_scores(a, b, *fold_types(q, w2, b2), cu_words, cu_types, max_width)
    return scores_by_vectors(a, b, w2, b2, q, cu_words, cu_types, max_width)


def scores_by_vectors(
    a: Tensor,
    b: Tensor,
    w2: Tensor | PackedWeight,
    b2: Tensor,
    q: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
) -> Tensor:
    """What head_scores returns, by span vectors whatever they cost."""
    sizes = (cu_words.diff().long() * cu_types.diff() * max_width).tolist()
    offsets = [0, *accumulate(sizes)]
    logits = q.new_full((offsets[-1],), -torch.inf, dtype=_logit_dtype(a, b, w2, b2, q))
    for text, spans, part in _vector_logits(a, b, w2, b2, q, cu_words, cu_types, max_width):
        rows = (spans[:, 0] - cu_words[text]) * max_width + spans[:, 1]
        logits[offsets[text] : offsets[text + 1]].view(-1, part.shape[1]).index_copy_(0, rows, part)
    return logits


def head_entities(
    a: Tensor,
    b: Tensor,
    w2: Tensor | PackedWeight,
    b2: Tensor,
    q: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    threshold: float | Tensor,
    folded: tuple[Tensor, Tensor] | None = None,
) -> SpanEntities:
    """`span_entities` of a head whose w2 [d, H], b2 [d] and type vectors q [m, d] are known: by fold or span vectors.

    a, b [n, H], cu_words, cu_types, max_width, threshold and the result as in `span_entities`; w2 may be packed as in
    `head_scores`. folded: (u [m, H], c [m]) = (q w2, q b2), if they are known too.
    """
    if not vectors_are_cheaper(len(q), len(cu_words) - 1, max_width, *_sizes(w2), folded is not None):
        u, c = fold_types(q, w2, b2) if folded is None else folded
        return span_entities(a, b, u, c, cu_words, cu_types, max_width, threshold)
    bounds = type_bounds(
        *check_threshold("head_entities", threshold, len(q), a.device),
        len(q),
        a.device,
        _logit_dtype(a, b, w2, b2, q),
    )
    first_types = cu_types.tolist()
    found = []
    with torch.no_grad():
        for text, spans, part in _vector_logits(a, b, w2, b2, q, cu_words, cu_types, max_width):
            passed = ~(part <= bounds[first_types[text] : first_types[text + 1]])  # above, or NaN
            row, kind = passed.nonzero().unbind(1)
            word, width = spans[row].unbind(1)
            found.append((word, width, kind + first_types[text], scores_of(part[row, kind])))
    return SpanEntities(*(torch.cat(column) for column in zip(*found, strict=True)))
