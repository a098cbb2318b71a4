"""Calls of every Triton kernel's launcher, one function per operator, from which bench/resources.py compiles.

To add an operator, write a function that calls its launchers for a `Case`, add it to LAUNCHES, and add kernels whose
products belong on tensor cores to CONTRACTIONS. The launchers get CPU tensors and no kernel runs, so results are
undefined. Every option that is a constant of a kernel needs its own call.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from glimodern.kernels import (
    add_layer_norm,
    geglu,
    rotary,
    span_entities,
    span_loss,
    span_scores,
    span_vectors,
    token_scores,
)
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SEED = 5


class Case(NamedTuple):
    """One way to launch an operator. quick: whether bench/resources.py --quick compiles it."""

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


def launch_span_entities(case: Case) -> None:
    """Launch both passes, with a made-up number of candidates, as no kernel runs to count them."""
    (a, b, u, c), (cu_words, cu_types, max_width) = span_batch(case)
    counts = torch.zeros(len(a) * max_width, 2 if len(u) > 1 else 1, dtype=torch.int32)
    batch = (a, b, u, c, cu_words, cu_types, torch.zeros(len(u)), max_width, counts)
    found = (*torch.zeros(2, 16, dtype=torch.int64), torch.zeros(16))
    span_entities.entities_pass(*batch, None, found)
    span_entities.entities_pass(*batch, counts.long(), found)


def launch_span_vectors(case: Case) -> None:
    """Launch the forward pass, and the backward pass of one chunk of rows."""
    (a, b, _, _), (_, _, max_width) = span_batch(case)
    w2 = torch.zeros(max(a.shape[1] // 4, 1), a.shape[1], dtype=a.dtype)
    rows = torch.zeros(len(a) * max_width, dtype=torch.int32)
    span_vectors.span_vectors_forward(a, b, w2, w2[:, 0].contiguous(), rows, rows, max_width, case.dropout, SEED)
    x, grad = span_vectors.span_hidden(a, b, rows, rows, max_width, case.dropout, SEED), torch.zeros(a.shape)
    span_vectors.span_hidden_backward(rows, rows, x, x, grad, grad, case.dropout)


def launch_token_scores(case: Case) -> None:
    (a, _, u, _), _ = span_batch(case)
    width = max(a.shape[1] // 4, 1)
    x, y, w1 = (a.new_zeros(rows, width) for rows in (len(a), len(u), a.shape[1]))
    w2 = a.new_zeros(3, a.shape[1])
    pairs = torch.zeros(64, dtype=torch.int32)
    token_scores.token_scores_forward(a, u, x, y, w1, w2, w2[:, 0].contiguous(), pairs, pairs, case.dropout, SEED)


TOKEN_SIZES = {"usual": (64, 768), "ones": (1, 1)}  # tokens, width
TOKEN_CASES = (*(Case(dtype) for dtype in DTYPES), Case("fp32", "ones"))


def launch_geglu(case: Case) -> None:
    tokens, width = TOKEN_SIZES[case.size]
    x, wide = (torch.zeros(tokens, factor * width, dtype=DTYPES[case.dtype]) for factor in (1, 2))
    geglu.geglu_forward(wide, x)
    geglu.geglu_backward(x, wide, wide)


def launch_rotary(case: Case) -> None:
    tokens, width = TOKEN_SIZES[case.size]
    qk = torch.zeros(tokens, 3, max(1, width // 64), 64, dtype=DTYPES[case.dtype])[:, :2]
    for inverse in (False, True):
        rotary.rotary(qk, *torch.zeros(2, tokens, 32), torch.zeros_like(qk), inverse)


def launch_add_layer_norm(case: Case) -> None:
    tokens, width = TOKEN_SIZES[case.size]
    x, vector, column = torch.zeros(tokens, width, dtype=DTYPES[case.dtype]), torch.zeros(width), torch.zeros(tokens)
    none = vector[:0]
    for rms in (False, True):
        add_layer_norm.add_layer_norm_forward(x, None, vector, None, 1e-5, x, None, none, none, rms)
        add_layer_norm.add_layer_norm_forward(x, x, vector, None if rms else vector, 1e-5, x, x, column, column, rms)
        add_layer_norm.add_layer_norm_backward(x, x, x, vector, column, column, x, vector, vector, rms)
        add_layer_norm.add_layer_norm_backward(x, None, x, vector, column, column, x, none, none, rms)


LAUNCHES = {
    "span_scores": Launches(launch_span_scores, SPAN_CASES),
    "span_loss": Launches(launch_span_loss, SPAN_CASES),
    "span_entities": Launches(launch_span_entities, SPAN_CASES),
    "span_vectors": Launches(launch_span_vectors, SPAN_CASES),
    "token_scores": Launches(launch_token_scores, SPAN_CASES),
    "geglu": Launches(launch_geglu, TOKEN_CASES),
    "rotary": Launches(launch_rotary, TOKEN_CASES),
    "add_layer_norm": Launches(launch_add_layer_norm, TOKEN_CASES),
}
CONTRACTIONS = {
    "scores_kernel", "word_grads_kernel", "type_grads_kernel", "loss_kernel", "entities_kernel", "vectors_kernel",
    "token_scores_kernel",
}  # fmt: skip
