"""span_scores: ours against the eager reference, and against the fold with a stored hidden tensor, eager and compiled.

The reference and its gradient loop over texts, so the form with the stored hidden tensor is the faster one in eager
PyTorch.
"""

import pytest
import torch
from measure import DEVICE, DTYPE_NAMES
from sides import DIRECTIONS, FORWARD, Problem, Wanted, compile_side, costs
from span_sides import SpanSize, stored_hidden

from glimodern import ops, reference

LARGE, SMALL = SpanSize(2590, 64, 9), SpanSize(512, 1, 25)
DTYPES = (torch.float32,) if DEVICE.type == "cpu" else (torch.float32, torch.bfloat16)
WANTED = (
    Wanted("share", "", 0.7),
    Wanted("time", "stored hidden", 3.0),
    Wanted("time", "stored hidden, compiled", 3.0),
)
SWEEPS = (
    *(("words", words, SpanSize(words, words // 64, 9)) for words in (64, 256, 512, 1024, 2048)),
    *(("types", types, SpanSize(512, 1, types)) for types in (1, 4, 16, 64, 256)),
    *(("K", width, SpanSize(512, 8, 9, max_width=width)) for width in (1, 4, 8, 16, 32)),
)


def problem(size: SpanSize, dtype: torch.dtype = torch.float32, sweep: tuple[str, int] | None = None) -> Problem:
    batch = size.batch(dtype)
    peer = stored_hidden(batch)
    peers = {"stored hidden": peer}
    compiled = None
    if sweep is not None:
        compiled = "each point of a sweep would need a compilation"
    elif size.texts > 1:
        compiled = "unrolls over texts: minutes of compilation"
        peers["stored hidden, compiled"] = compile_side(peer)
    return Problem(
        "span_scores",
        str(size),
        batch.floats,
        lambda *x: ops.span_scores(*x, *batch.bounds, size.max_width),
        lambda *x: reference.span_scores(*x, *batch.bounds, size.max_width),
        costs("span_scores", size.shape(dtype)),
        peers,
        compiled,
        sweep,
    )


@pytest.fixture(scope="module", params=DTYPES, ids=DTYPE_NAMES.get)
def small(request):
    return problem(SMALL, request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES.get)
def bench_many_texts(compare, dtype):
    compare(problem(LARGE, dtype), FORWARD, WANTED)


@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_scores(compare, small, direction):
    compare(small, direction)


@pytest.mark.parametrize("point", SWEEPS, ids=lambda point: f"{point[0]}-{point[1]}")
def bench_sweep(compare, point):
    """Time one point of the plots."""
    axis, at, size = point
    compare(problem(size, sweep=(axis, at)), FORWARD)
