"""geglu: ours against eager and compiled PyTorch, on the FFN's hidden layer of 4,500 tokens of ModernBERT-base."""

import pytest
from measure import DTYPE_NAMES
from roofline import Tokens
from sides import DIRECTIONS, Problem, costs
from token_sides import COMPILED, DTYPES, FFN, TOKENS, draw, wanted

from glimodern import ops, reference


@pytest.fixture(scope="module", params=DTYPES, ids=DTYPE_NAMES.get)
def sides(request):
    dtype = request.param
    return Problem(
        "geglu",
        f"{TOKENS:,} tokens, 2 x {FFN:,}",
        (draw(TOKENS, 2 * FFN, dtype=dtype),),
        ops.geglu,
        reference.geglu,
        costs("geglu", Tokens(TOKENS, FFN, dtype.itemsize)),
        compiled=COMPILED[dtype],
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_geglu(compare, sides, direction):
    compare(sides, direction, wanted(sides.floats[0].dtype, direction))
