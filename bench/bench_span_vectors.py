"""span_vectors of all spans: ours against the eager reference, which stores the hidden tensor, eager and compiled."""

import pytest
import torch
from sides import DIRECTIONS, Problem, costs
from span_sides import WIDTH, SpanSize

from glimodern import ops, reference

SIZE = SpanSize(256, 1, 1)


@pytest.fixture(scope="module")
def sides():
    batch = SIZE.batch()
    generator = torch.Generator().manual_seed(2)
    w2 = torch.randn(WIDTH, SIZE.hidden, generator=generator).to(batch.a) / SIZE.hidden**0.5
    b2 = torch.randn(WIDTH, generator=generator).to(batch.a)
    return Problem(
        "span_vectors",
        f"{SIZE.words} words in 1 text, K {SIZE.max_width}, H {SIZE.hidden:,}, d {WIDTH}",
        (batch.a, batch.b, w2, b2),
        lambda *x: ops.span_vectors(*x, batch.cu_words, batch.max_width),
        lambda *x: reference.span_vectors(*x, batch.cu_words, batch.max_width),
        costs("span_vectors", SIZE.shape()),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_vectors(compare, sides, direction):
    compare(sides, direction)
