"""add_layer_norm: ours against eager and compiled PyTorch, on 4,500 tokens of ModernBERT-base (no bias)."""

import pytest
from measure import DTYPE_NAMES
from roofline import Tokens
from sides import DIRECTIONS, Problem, costs
from token_sides import COMPILED, DTYPES, TOKENS, WIDTH, draw, wanted

from glimodern import ops, reference

EPS = 1e-5


@pytest.fixture(scope="module", params=DTYPES, ids=DTYPE_NAMES.get)
def sides(request):
    dtype = request.param
    x, residual = (draw(TOKENS, WIDTH, dtype=dtype, seed=seed) for seed in range(2))
    return Problem(
        "add_layer_norm",
        f"{TOKENS:,} tokens, {WIDTH}",
        (x, residual, draw(WIDTH, dtype=dtype, seed=2)),
        lambda x, residual, weight: ops.add_layer_norm(x, residual, weight, None, EPS),
        lambda x, residual, weight: reference.add_layer_norm(x, residual, weight, None, EPS),
        costs("add_layer_norm", Tokens(TOKENS, WIDTH, dtype.itemsize)),
        compiled=COMPILED[dtype],
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_add_layer_norm(compare, sides, direction):
    compare(sides, direction, wanted(sides.floats[0].dtype, direction))
