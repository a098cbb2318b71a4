"""Every Triton kernel as its launcher launches it: one function an operator, which bench/resources.py compiles from.

To add an operator: a function here that calls its launchers for a `Case`, a line in LAUNCHES, and, for a kernel whose
products belong on the tensor cores, its name in CONTRACTIONS. The launchers run on CPU tensors and no kernel runs, so
results are whatever memory held; every option that is a constant of a kernel wants a call of its own.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from glimodern.kernels import span_loss, span_scores
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SEED = 5


class Case(NamedTuple):
    """One way to launch an operator. quick: among those that bench/resources.py --quick compiles."""

    dtype: str
    size: str = "usual"
    dropout: float = 0.0

    @property
    def quick(self) -> bool:
        return self.dtype != "fp16" and self.size == "usual" and not self.dropout


class Launches(NamedTuple):
    launch: Callable[[Case], object]
    cases: tuple[Case, ...]


# Words and types by text, H, K. "ones": every integer argument is 1, which Triton makes a constant.
SPAN_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "usual": ((40, 0, 24), (9, 3, 16), 768, 12),
    "many types": ((40, 24), (700, 90), 768, 12),
    "ones": ((1,), (1,), 1, 1),
}
SPAN_CASES = (
    *itertools.starmap(Case, itertools.product(DTYPES, ("usual", "many types"), (0.0, 0.3))),
    Case("fp32", "ones"),
)


def span_batch(case: Case) -> tuple[list[Tensor], tuple[Tensor, Tensor, int]]:
    """a, b [n, H], u [m, H], c [m]; cu_words, cu_types, K."""
    words, types, hidden, max_width = SPAN_SIZES[case.size]
    cu_words, cu_types = (torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (words, types))
    shapes = ((sum(words), hidden), (sum(words), hidden), (sum(types), hidden), (sum(types),))
    return [torch.zeros(shape, dtype=DTYPES[case.dtype]) for shape in shapes], (cu_words, cu_types, max_width)


def launch_span_scores(case: Case) -> None:
    floats, bounds = span_batch(case)
    logits = span_scores.span_scores_forward(*floats, *bounds, case.dropout, SEED)
    span_scores.span_scores_backward(logits, *floats[:3], *bounds, case.dropout, SEED)


def launch_span_loss(case: Case) -> None:
    floats, (cu_words, cu_types, max_width) = span_batch(case)
    batch = (*floats, cu_words, cu_types, torch.zeros(1, 3, dtype=torch.int32), max_width)
    for gamma, balance, mean, grads in ((0.0, None, False, False), (2.0, 0.75, True, True)):
        span_loss.span_loss_forward(*batch, gamma, 1.0, balance, mean, case.dropout, SEED, grads)


LAUNCHES = {
    "span_scores": Launches(launch_span_scores, SPAN_CASES),
    "span_loss": Launches(launch_span_loss, SPAN_CASES),
}
CONTRACTIONS = {"scores_kernel", "word_grads_kernel", "type_grads_kernel", "loss_kernel"}
