"""Scoring of 500 to 5,000 types: by the fold, by span vectors, and by `ops.head_scores`, which takes the cheaper one.

Costs are those of the cheaper way (glimodern/ops/_head.py): multiply-adds of the products, each operand moved once.
"""

import pytest
import torch
from measure import DEVICE
from roofline import Cost
from sides import FORWARD, Problem
from span_sides import WIDTH, SpanSize
from torch import Tensor

from glimodern import ops, reference
from glimodern.ops import _head as _cost

SIZES = tuple(SpanSize(300, 1, types) for types in (500, 1000, 2000, 5000))


@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_head_scores(compare, size):
    batch = size.batch()
    generator = torch.Generator().manual_seed(3)
    w2 = (torch.randn(WIDTH, size.hidden, generator=generator) / size.hidden**0.5).to(DEVICE)
    b2, q = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((WIDTH,), (size.types, WIDTH)))
    rest = (*batch.bounds, batch.max_width)

    def folded(a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, q: Tensor) -> Tensor:
        return ops.span_scores(a, b, q @ w2, q @ b2, *rest)

    def vectors(a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, q: Tensor) -> Tensor:
        return _cost.scores_by_vectors(a, b, w2, b2, q, *rest)

    shape = (size.words, size.types, size.texts, size.max_width, size.hidden, WIDTH)
    least = min(_cost.scoring_cost(*shape))
    logits = size.words * size.max_width * size.types
    moved = 4 * (2 * batch.a.numel() + w2.numel() + q.numel() + logits)
    problem = Problem(
        "span_scores",
        f"{size}, d {WIDTH}, by W2 and q",
        (batch.a, batch.b, w2, b2, q),
        lambda *x: ops.head_scores(*x, *rest),
        lambda a, b, w2, b2, q: reference.span_scores(a, b, q @ w2, q @ b2, *rest),
        {FORWARD: Cost(2 * least, 0, moved)},
        {"fold": folded, "span vectors": vectors},
        "the eager side is far slower already",
    )
    compare(problem, FORWARD)
