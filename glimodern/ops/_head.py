"""Score a span head by the cheaper of two exact ways: fold the types, or make span vectors.

The head ends in a Linear (W2, b2) and a product with type vectors q. Multiply-adds of the products, for s spans and m
types of a text, widths H (hidden) and d (of the vectors):

    fold       u = q W2, c = q b2, then relu(a_i + b_j) . u_t + c_t        m d H + s m H
    vectors    S = relu(a_i + b_j) W2^T + b2, then S . q_t                 s H d + s m d

With few types the fold is cheaper, and no span vector exists. Vectors are cheaper beyond m = d H / (H - d + d H / s)
types, which is 4d/3 for H = 4d and long texts. Measured on two Zen 3 cores (docs/LOG.md), 300 words, K = 12: equal at
about 500 types for d = 384 and at about 750 for d = 768; vectors are three times faster at 5,000. Both run near a
matrix product's rate, so multiply-adds decide, and predict the measured ratio to a tenth.

Where u and c are known already (labels that were asked before), the fold costs s m H alone, and is cheaper up to
m = 4d/3 for H = 4d, however short the text.

The choice depends on the number of types per text alone (the mean, where texts are asked different types), as if every
text had 100 words. The two ways round differently in half precision, and with the same types asked of all, a text's
scores must not depend on the other texts of the batch.

Training asks a few dozen types of a sentence and always folds (`span_loss`), whose backward pass stores nothing.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference
from glimodern.reference.span import fp32_product

from . import dispatch
from ._check import text_offsets
from ._linear_packed import PackedWeight, linear_packed
from ._span_entities import SpanEntities, check_range, check_threshold, probabilities, span_entities, type_bounds
from ._span_scores import span_scores
from ._span_vectors import VectorInputs, vectors_of_checked
from .dispatch import BF16, FP32, FP64, needs_grad

_TILE_LOGITS = 1 << 22  # logits that exist at a time while a text is scored by vectors: 16 MB in fp32
_TYPICAL_WORDS = 100  # of a text, for the choice
_LEAST_GAIN = 1.1  # vectors are made tile by tile in Python: not for a gain that this would eat


class ScoringCost(NamedTuple):
    """Multiply-adds of a batch's scoring."""

    fold: float
    vectors: float


def scoring_cost(
    words: int, types: int, texts: int, max_width: int, hidden: int, width: int, folded: bool = False
) -> ScoringCost:
    """Costs of the two ways for a batch of `words` words, `types` types and `texts` texts, with H and d.

    The texts' means are taken, so that shapes alone decide and nothing waits for the device. folded: u and c are known.
    """
    mean_words = words / max(texts, 1)
    widths = min(max_width, mean_words)
    spans = words * widths - texts * widths * (widths - 1) / 2
    pairs = spans * types / max(texts, 1)
    return ScoringCost(
        fold=(0.0 if folded else types * width * hidden) + pairs * hidden,
        vectors=spans * hidden * width + pairs * width,
    )


def vectors_are_cheaper(types: int, texts: int, max_width: int, hidden: int, width: int, folded: bool = False) -> bool:
    """Whether `head_scores` and `head_entities` score such a batch by span vectors, rather than by the fold.

    types: entity types of all texts together. hidden, width: H and d, the sizes of w2 [d, H]. folded: u and c of the
    fold are known.
    """
    cost = scoring_cost(_TYPICAL_WORDS * texts, types, texts, max_width, hidden, width, folded)
    return cost.fold > _LEAST_GAIN * cost.vectors


class HeadInputs(NamedTuple):
    """What head_scores and head_entities score: see `head_scores`."""

    a: Tensor
    b: Tensor
    w2: Tensor | PackedWeight
    b2: Tensor
    q: Tensor
    cu_words: Tensor
    cu_types: Tensor
    max_width: int

    def vectors_are_cheaper(self, folded: bool = False) -> bool:
        w2 = self.w2
        hidden, width = (w2.outputs, w2.inputs) if isinstance(w2, PackedWeight) else (w2.shape[1], w2.shape[0])
        return vectors_are_cheaper(len(self.q), len(self.cu_words) - 1, self.max_width, hidden, width, folded)

    @property
    def logit_dtype(self) -> torch.dtype:
        """fp64 if one of the tensors is, else fp32."""
        return FP64 if any(isinstance(x, Tensor) and x.dtype == FP64 for x in self[:5]) else FP32


def _product_with(q: Tensor, inputs: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """A function that multiplies span vectors [s, d] by q^T, q [m, d]: [s, m], summed and returned in fp32 (or fp64).

    inputs: what the span vectors are computed from. For inference in bf16 on a CPU q is packed: PyTorch's product in
    bf16 has no fp32 result there, and its product in fp32 takes twice the time.
    """
    all_bf16 = all(x.dtype == BF16 for x in (q, *inputs))
    if all_bf16 and not needs_grad(q, *inputs) and dispatch.can_run("linear_packed", "cpp", q):
        packed = PackedWeight.pack(q, dtype="bf16")
        return lambda vectors: linear_packed(vectors, packed, dtype=FP32)
    return lambda vectors: fp32_product(vectors, q)


def _vector_logits(inputs: HeadInputs) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Score by span vectors, tile by tile, all spans inside their texts in order; the offsets are checked once.

    Yields (text, spans int64 [s, 2] of the text, their logits fp32 or fp64 [s, the text's types]).
    """
    a, b, w2, b2, q, cu_words, cu_types, max_width = inputs
    w2 = w2.unpack().T.to(a.dtype) if isinstance(w2, PackedWeight) else w2
    head = VectorInputs(a, b, w2, b2, cu_words, None, max_width, 0.0, 0).checked()
    word_offsets, type_offsets = text_offsets("cu_words", cu_words, len(a)), text_offsets("cu_types", cu_types, len(q))
    widths = torch.arange(max_width, device=a.device)
    for text, (w0, w1) in enumerate(zip(word_offsets, word_offsets[1:], strict=False)):
        text_q = q[type_offsets[text] : type_offsets[text + 1]]
        if not len(text_q):
            continue
        spans = torch.cartesian_prod(torch.arange(w0, w1, device=a.device), widths)
        spans = spans[spans.sum(1) < w1]
        product = _product_with(text_q, head.floats)
        for tile in spans.split(max(1, _TILE_LOGITS // len(text_q))):
            yield text, tile, product(vectors_of_checked(head._replace(spans=tile)))


def fold_types(q: Tensor, w2: Tensor | PackedWeight, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a head's last Linear into the type vectors: u = q w2 [m, H] and c = q b2 [m], which `span_scores` takes.

    q: [m, d], one row per entity type. w2: [d, H], or its transpose packed by `PackedWeight.pack`, which gives a type
    the same u and c whatever the other types are. b2: [d]. All in one dtype; differentiable unless packed.
    """
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
    """`span_scores` of a head with a last Linear and type vectors, by fold or by span vectors (`vectors_are_cheaper`).

    a, b, cu_words, cu_types, max_width: as in `span_scores`.
    w2: [d, H], or, for inference, its transpose [H, d] packed by `PackedWeight.pack`. b2: [d]. q: [m, d], one type
        vector per row.

    Returns what `span_scores` returns for u, c = fold_types(q, w2, b2); differentiable. Raises as `span_scores` does.
    """
    if HeadInputs(a, b, w2, b2, q, cu_words, cu_types, max_width).vectors_are_cheaper():
        return scores_by_vectors(a, b, w2, b2, q, cu_words, cu_types, max_width)
    return span_scores(a, b, *fold_types(q, w2, b2), cu_words, cu_types, max_width)


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
    """`head_scores` by span vectors, whatever they cost."""
    inputs = HeadInputs(a, b, w2, b2, q, cu_words, cu_types, max_width)
    offsets = reference.logit_offsets(cu_words, cu_types, max_width).tolist()
    logits = q.new_full((offsets[-1],), -torch.inf, dtype=inputs.logit_dtype)
    for text, spans, block in _vector_logits(inputs):
        rows = (spans[:, 0] - cu_words[text]) * max_width + spans[:, 1]
        logits[offsets[text] : offsets[text + 1]].view(-1, block.shape[1]).index_copy_(0, rows, block)
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
    """`span_entities` of a head with a last Linear and type vectors, by fold or span vectors (`vectors_are_cheaper`).

    a .. max_width: as in `head_scores`. threshold: as in `span_entities`.
    folded: fold_types(q, w2, b2), if it is known already.

    Returns SpanEntities, and raises, as `span_entities` does.
    """
    inputs = HeadInputs(a, b, w2, b2, q, cu_words, cu_types, max_width)
    if not inputs.vectors_are_cheaper(folded is not None):
        u, c = fold_types(q, w2, b2) if folded is None else folded
        return span_entities(a, b, u, c, cu_words, cu_types, max_width, threshold)
    number, per_type = check_threshold(threshold, len(q), a.device)
    if per_type is not None and a.device.type == "cpu":
        check_range(per_type)
    bounds = type_bounds(number, per_type, len(q), a.device, inputs.logit_dtype)
    type_offsets = cu_types.tolist()
    blocks = []
    with torch.no_grad():
        for text, spans, logits in _vector_logits(inputs):
            passed = ~(logits <= bounds[type_offsets[text] : type_offsets[text + 1]])  # above, or NaN
            row, type_id = passed.nonzero().unbind(1)
            word, width = spans[row].unbind(1)
            blocks.append((word, width, type_id + type_offsets[text], probabilities(logits[row, type_id])))
    return SpanEntities(*(torch.cat(column) for column in zip(*blocks, strict=True)))
