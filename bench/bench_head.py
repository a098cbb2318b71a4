"""The span head, from word vectors and prompts to logits, or to the gradients of a training step.

Ours (the fold and the fused operator) is compared with the textbook form and with the public gliner package's layers.
Costs are those of the fold, the minimum work of the head, for all sides.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from measure import DEVICE
from roofline import Cost, cost
from sides import BOTH, FORWARD, Problem, Wanted, total
from span_sides import WIDTH, SpanSize, gliner_layers, stored_hidden
from torch import Tensor

from glimodern import ops, reference
from glimodern.network.head import SpanHead

LARGE, STEP = SpanSize(2590, 64, 9), SpanSize(512, 1, 25)
UNROLLED = "unrolls over texts: minutes of compilation"


def vectors(size: SpanSize) -> tuple[Tensor, Tensor]:
    """Draw word vectors [n, d] and prompts [m, d]."""
    generator = torch.Generator().manual_seed(0)
    rows = (size.words, size.texts * size.types)
    h, p = (torch.randn(n, WIDTH, generator=generator).to(DEVICE) for n in rows)
    return h, p


def head_of(seed: int = 0) -> SpanHead:
    torch.manual_seed(seed)
    return SpanHead(WIDTH, 0.0, "markerV0", LARGE.max_width).to(DEVICE).eval()


def fold_cost(size: SpanSize, marker_layers: bool) -> Cost:
    """Cost of the fold's matrix products, and optionally of the MLPs before it, forward. Each operand is moved once."""
    words, types, d = size.words, size.texts * size.types, WIDTH
    products = [(words, 4 * d, d), (words, 4 * d, d), (types, 4 * d, d)]  # a, b, u
    if marker_layers:
        products += [(rows, *shape) for rows in (words, words, types) for shape in ((4 * d, d), (d, 4 * d))]
    moved = 4 * sum(n * k + k * m + n * m for n, m, k in products)
    return Cost(2 * sum(n * m * k for n, m, k in products), 0, moved)


def bench_whole_head(compare):
    """Marker MLPs, prompt MLP, fold and scores. The eager side is the fold too, with the eager span_scores."""
    batch, (h, p) = LARGE.batch(), vectors(LARGE)
    head = head_of()
    heads = {torch.float32: head, torch.float64: deepcopy(head).double()}
    stored = stored_hidden(batch)
    problem = Problem(
        "span_scores",
        f"whole head, {LARGE}",
        (h, p),
        lambda h, p: ops.span_scores(*head.fold(h, p), *batch.bounds, LARGE.max_width),
        lambda h, p: reference.span_scores(*heads[h.dtype].fold(h, p), *batch.bounds, LARGE.max_width),
        {FORWARD: total(fold_cost(LARGE, True), cost("span_scores", LARGE.shape()))},
        {"stored hidden": lambda h, p: stored(*head.fold(h, p)), "gliner": gliner_layers(head, batch)},
        UNROLLED,
    )
    compare(problem, FORWARD, [Wanted("time", "gliner", 8.0)])


def bench_training_step(compare):
    """From the span FFN's inputs, weights and type vectors to the gradients of the loss by all of them."""
    batch, (h, p) = STEP.batch(), vectors(STEP)
    rest = (*batch.bounds, batch.positives, batch.max_width)
    with torch.no_grad():
        parts = head_of().parts(h, p)

    def folded(*tensors: Tensor) -> tuple[Tensor, ...]:
        starts, ends, w1, b1, w2, b2, q = tensors
        w1_start, w1_end = w1.chunk(2, dim=1)
        return F.linear(starts, w1_start, b1), F.linear(ends, w1_end), q @ w2, q @ b2

    def ours(*tensors: Tensor) -> Tensor:
        return ops.span_loss(*folded(*tensors), *rest, focal_gamma=2.0)

    def oracle(*tensors: Tensor) -> Tensor:  # the fold: the textbook form in fp64 takes a quarter of a minute
        return reference.span_loss(*folded(*tensors), *rest, focal_gamma=2.0)

    def textbook(*tensors: Tensor) -> Tensor:
        logits = reference.textbook_scores(*tensors, *batch.bounds, batch.max_width)
        return reference.loss_of_scores(logits, *rest, focal_gamma=2.0)

    fold, loss = fold_cost(STEP, False), [cost("span_loss", STEP.shape(), backward) for backward in (False, True)]
    problem = Problem(
        "span_loss",
        f"from the span FFN's inputs, {STEP}",
        tuple(x.detach() for x in parts),
        ours,
        textbook,
        {BOTH: total(fold, fold, fold, *loss)},
        compiled="matrix products are nearly all of it, and no faster compiled",
        oracle=oracle,
    )
    compare(problem, BOTH, [Wanted("time", "eager", 10.0), Wanted("memory", "eager", 20.0)])
