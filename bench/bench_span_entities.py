"""span_entities: ours against the eager reference, and against thresholds on stored logits.

The threshold lies in the widest gap between the logits around their upper percent, so that rounding does not matter and
all sides must find the same spans and types.
"""

import torch
from sides import FORWARD, Function, Problem, costs
from span_sides import SpanSize, stored_hidden
from torch import Tensor

from glimodern import ops, reference

SIZE = SpanSize(2590, 64, 9)


def gap_threshold(logits: Tensor) -> tuple[float, int]:
    """Return (threshold as a probability, number of logits above it)."""
    order = logits[logits.isfinite()].sort(descending=True).values
    first = len(order) // 100
    place = first + int((order[first : first + 100] - order[first + 1 : first + 101]).argmax())
    return float(torch.sigmoid((order[place] + order[place + 1]) / 2)), place + 1


def bench_entities(compare):
    batch = SIZE.batch()
    double = batch.to(torch.float64)
    logits = reference.span_scores(*double.floats, *batch.bounds, batch.max_width)
    threshold, found = gap_threshold(logits)
    limits = torch.full_like(batch.c, threshold)
    text = torch.repeat_interleave(batch.cu_words.diff().long())

    def thresholded(scores: Function) -> Function:
        def entities(*floats: Tensor) -> tuple[Tensor, ...]:
            probability = torch.sigmoid(scores(*floats))
            (place,) = (probability > threshold).nonzero(as_tuple=True)
            word = place // (SIZE.types * SIZE.max_width)
            kind = text[word] * SIZE.types + place % SIZE.types
            return in_floats(word, place // SIZE.types % SIZE.max_width, kind, probability[place])

        return entities

    def in_floats(word: Tensor, width: Tensor, kind: Tensor, score: Tensor) -> tuple[Tensor, ...]:
        return word.to(score), width.to(score), kind.to(score), score

    def eager(*floats: Tensor) -> tuple[Tensor, ...]:
        *places, logit = reference.span_entities(*floats, *batch.bounds, batch.max_width, limits)
        return in_floats(*places, torch.sigmoid(logit))

    problem = Problem(
        "span_entities",
        str(SIZE),
        batch.floats,
        lambda *x: in_floats(*ops.span_entities(*x, *batch.bounds, batch.max_width, limits)),
        eager,
        costs("span_entities", SIZE.shape(candidates=found)),
        {
            "our span_scores, then a threshold": thresholded(
                lambda *x: ops.span_scores(*x, *batch.bounds, batch.max_width)
            ),
            "stored hidden": thresholded(stored_hidden(batch)),
        },
        "its result has no fixed shape",
    )
    compare(problem, FORWARD)
