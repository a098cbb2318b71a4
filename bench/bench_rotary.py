"""rotary of queries and keys: ours against eager and compiled PyTorch, on 4,500 tokens of ModernBERT-base."""

import pytest
import torch
from measure import DEVICE, DTYPE_NAMES
from roofline import Tokens
from sides import DIRECTIONS, Problem, costs
from token_sides import COMPILED, DTYPES, HEAD_DIM, HEADS, TOKENS, draw, wanted

from glimodern import ops, reference

BASE = 160_000.0


@pytest.fixture(scope="module", params=DTYPES, ids=DTYPE_NAMES.get)
def sides(request):
    dtype = request.param
    qk = draw(TOKENS, 2, HEADS, HEAD_DIM, dtype=dtype)
    frequency = BASE ** -torch.arange(0, 1, 2 / HEAD_DIM)
    angle = ((torch.arange(TOKENS) % 70)[:, None] * frequency).to(DEVICE)
    cos, sin = angle.cos(), angle.sin()
    return Problem(
        "rotary",
        f"{TOKENS:,} tokens, queries and keys of {HEADS} heads of {HEAD_DIM}",
        (qk,),
        lambda x: ops.rotary(x, cos, sin),
        lambda x: reference.rotary(x, cos, sin),
        costs("rotary", Tokens(TOKENS, HEADS * HEAD_DIM, dtype.itemsize, longest=TOKENS, head_dim=HEAD_DIM)),
        compiled=COMPILED[dtype],
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_rotary(compare, sides, direction):
    compare(sides, direction, wanted(sides.floats[0].dtype, direction))
