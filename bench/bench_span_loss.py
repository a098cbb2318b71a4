"""span_loss: the loss only, and the loss of a training step with its gradients.

The forward call computes the gradients if any is required, and the backward call only scales them. The backward pass is
therefore not timed separately.
"""

import pytest
import torch
from sides import BOTH, FORWARD, Problem, costs
from span_sides import SpanSize, stored_hidden

from glimodern import ops, reference

OPTIONS = {"focal_gamma": 2.0}


def problem(dropout_p: float) -> Problem:
    size = SpanSize(128 if dropout_p else 512, 1, 25)  # eager PyTorch takes 30 ns an element for its dropout mask
    batch = size.batch()
    rest = (*batch.bounds, batch.positives, batch.max_width)
    options = {**OPTIONS, "dropout_p": dropout_p, "seed": 1}
    scores = stored_hidden(batch)

    def peer(*floats: torch.Tensor) -> torch.Tensor:
        return reference.loss_of_scores(scores(*floats), *rest, **OPTIONS)

    without = {"compiled": "measured without dropout"}
    return Problem(
        "span_loss",
        f"{size}, dropout {dropout_p}",
        batch.floats,
        lambda *x: ops.span_loss(*x, *rest, **options),
        lambda *x: reference.span_loss(*x, *rest, **options),
        costs("span_loss", size.shape()),
        **(without if dropout_p else {"peers": {"stored hidden": peer}}),
    )


@pytest.fixture(scope="module", params=[0.0, 0.4], ids="dropout {}".format)
def sides(request):
    return problem(request.param)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def bench_loss(compare, sides, direction):
    compare(sides, direction)
