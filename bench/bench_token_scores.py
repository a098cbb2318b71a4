"""token_scores: ours against the eager reference, against the scorer before the fold, and with a packed weight.

The reference is the fold in PyTorch with the hidden layer stored, text by text. "textbook" is gliner's scorer: the
concatenation and the whole of W1 for every pair. A packed weight is what a model that is loaded for inference has.
"""

from dataclasses import dataclass

import pytest
import torch
from measure import DEVICE
from roofline import Pairs
from shapes import bounds_of
from sides import BACKWARD, BOTH, FORWARD, Function, Problem, Wanted, costs
from span_sides import even
from torch import Tensor

from glimodern import ops, reference

UNROLLS = "unrolls over texts: minutes of compilation"
WANTED = (Wanted("time", "textbook", 2.0),)


@dataclass(frozen=True)
class Size:
    """Words in all texts, number of texts, types per text, width d of the head."""

    words: int
    texts: int
    types: int
    width: int

    def __str__(self) -> str:
        texts = "1 text" if self.texts == 1 else f"{self.texts} texts"
        return f"{self.words:,} words in {texts}, {self.types} types, d {self.width}, H {4 * self.width:,}"


LARGE, SMALL = Size(640, 16, 9, 768), Size(256, 8, 9, 384)


def problem(size: Size) -> Problem:
    words, types = even(size.words, size.texts), (size.types,) * size.texts
    n, m, width, hidden = sum(words), sum(types), size.width, 4 * size.width
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(DEVICE)

    halves = draw(n, 2 * width), draw(m, 2 * width)
    w1, b1 = draw(hidden, 3 * width, scale=width**-0.5), draw(hidden)
    w2, b2 = draw(3, hidden, scale=hidden**-0.5), draw(3)
    w1_word, w1_type, w1p = w1.chunk(3, 1)
    (word, x), (kind, y) = (half.chunk(2, 1) for half in halves)
    floats = tuple(t.contiguous() for t in (word @ w1_word.T + b1, kind @ w1_type.T, x, y, w1p, w2, b2))
    bounds = bounds_of(words).to(DEVICE), bounds_of(types).to(DEVICE)

    def textbook(*floats: Tensor) -> Tensor:
        """Of the projections that a, b, x and y were made from."""
        dtype = floats[0].dtype
        parts = (*halves, w1, b1, w2, b2)
        return reference.textbook_token_scores(*(part.to(dtype) for part in parts), *bounds)

    peers: dict[str, Function | str] = {"textbook": textbook}
    if DEVICE.type == "cpu":
        packed = ops.PackedWeight.pack(w1p, dtype="fp32")
        peers["packed"] = lambda a, b, x, y, _, w2, b2: ops.token_scores(a, b, x, y, packed, w2, b2, *bounds)
    return Problem(
        "token_scores",
        str(size),
        floats,
        lambda *x: ops.token_scores(*x, *bounds),
        lambda *x: reference.token_scores(*x, *bounds),
        costs("token_scores", Pairs(words, types, hidden, width, itemsize=4)),
        peers,
        UNROLLS,
    )


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=str)
def bench_scores(compare, size):
    compare(problem(size), FORWARD, WANTED)


@pytest.mark.parametrize("direction", [BACKWARD, BOTH])
def bench_gradients(compare, direction):
    gradients = problem(SMALL)
    gradients.peers = {}  # the textbook form reads other inputs, and a packed weight has no gradient
    compare(gradients, direction)
