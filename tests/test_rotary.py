"""rotary: every backend against the fp64 reference, forward and backward; the contract of the public function."""

import naive
import pytest
import torch
from backends import BACKENDS, CPP, running
from elementwise import assert_matches, assert_same_bits, draw, odd_values
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import ops, reference
from glimodern.layers.rotary import rotary_table

SHAPES = {
    "ModernBERT-base": (4, 2, 12, 64),
    "one token": (1, 2, 3, 16),
    "no token": (0, 2, 3, 16),
    "no multiple of the vector width": (5, 2, 3, 26),
    "one pair": (5, 1, 3, 2),
    "one group": (6, 3, 20),
    "no head": (6, 2, 0, 8),
    "more than one thread's share": (120, 2, 4, 64),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def angles(n, half):
    angle = 10.0 * draw((n, half), seed=7)[0]
    return [angle.cos(), angle.sin()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, shape, dtype):
    assert_matches(
        backend, ops.rotary, reference.rotary, naive.rotary, draw(shape, dtype=dtype), angles(shape[0], shape[-1] // 2)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fused_projection_is_read_in_place(backend):
    """Queries and keys are a slice of [N, 3, heads, head_dim]; its gradient comes back into that slice."""

    def turn(qkv, cos, sin, rotate=ops.rotary):
        return rotate(qkv[:, :2], cos, sin)

    def by(rotate):
        return lambda *arguments: turn(*arguments, rotate=rotate)

    assert_matches(backend, turn, by(reference.rotary), by(naive.rotary), draw((7, 3, 4, 32)), angles(7, 16))


@pytest.mark.parametrize("where", ["x", "cos", "sin"])
@pytest.mark.parametrize("backend", CPP)
def test_nan_and_infinity_are_eagers(backend, where):
    x = draw((16, 2, 3, 32), dtype=torch.bfloat16)[0]
    tensors = {"x": x, **dict(zip(("cos", "sin"), angles(16, 16), strict=True))}
    tensors[where][..., 5] = odd_values(tensors[where].dtype).view(16, *[1] * (tensors[where].ndim - 2))
    expected = reference.rotary(x.float(), tensors["cos"], tensors["sin"]).bfloat16()
    with running(backend):
        got = ops.rotary(*tensors.values())
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())


@pytest.mark.parametrize("backend", CPP)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(tokens=st.integers(0, 40), heads=st.integers(1, 5), half=st.integers(1, 40), bf16=st.booleans())
def test_ragged_shapes(backend, tokens, heads, half, bf16):
    x = draw((tokens, 2, heads, 2 * half), seed=3, dtype=torch.bfloat16 if bf16 else torch.float32)
    assert_matches(backend, ops.rotary, reference.rotary, naive.rotary, x, angles(tokens, half))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits(backend, dtype):
    tokens = 10 if backend == "triton" else 130
    assert_same_bits(backend, ops.rotary, draw((tokens, 2, 4, 38), dtype=dtype), angles(tokens, 19))


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_alone_decide(backend):
    """A query at i and a key at j have one product for every i - j, and turning keeps lengths."""
    q, k = (x.expand(50, 1, 16) for x in draw((1, 1, 16), (1, 1, 16)))
    with running(backend) as device:
        cos, sin = (x.to(device) for x in rotary_table(torch.arange(50), 16, 10_000.0))
        q, k = (ops.rotary(x.to(device), cos, sin)[:, 0].cpu() for x in (q, k))
    scores = q @ k.T
    for shift in (0, 1, 7, -30):
        diagonal = scores.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.norm(dim=-1), q[:1].norm(dim=-1).expand(50))


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_gradcheck_in_fp64(backend):
    x = draw((3, 2, 2, 6), dtype=torch.float64)[0].requires_grad_()
    cos, sin = (y.double() for y in angles(3, 3))
    with running(backend):
        assert torch.autograd.gradcheck(lambda x: ops.rotary(x, cos, sin), x, nondet_tol=0.0)
        assert torch.autograd.gradgradcheck(lambda x: ops.rotary(x, cos, sin), x, nondet_tol=0.0)


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(backend, needs_grad):
    x = draw((5, 3, 2, 8))[0][:, :2].requires_grad_(needs_grad)
    with running(backend):
        torch.library.opcheck(torch.ops.glimodern.rotary.default, (x, *angles(5, 4), False))


def test_compiles_without_a_graph_break():
    x, (cos, sin) = draw((5, 3, 2, 8))[0].requires_grad_(), angles(5, 4)

    def model(x):
        return ops.rotary(x[:, :2], cos, sin).square()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    upstream = torch.ones(5, 2, 2, 8)
    assert torch.equal(torch.autograd.grad(compiled(x), x, upstream)[0], torch.autograd.grad(model(x), x, upstream)[0])


def test_inputs_of_any_layout():
    x, (cos, sin) = draw((2, 8, 3, 5))[0], angles(5, 4)
    strided = x.permute(3, 0, 2, 1)
    assert strided.stride(-1) != 1
    assert torch.equal(ops.rotary(strided, cos, sin), ops.rotary(strided.contiguous(), cos, sin))
    heads_first = strided.contiguous().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.rotary(heads_first, cos, sin), ops.rotary(strided.contiguous(), cos, sin))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(5, 2, 3, 7)}, ValueError, r"x: expected \[n, heads, 2h\]"),
        ({"x": torch.zeros(5, 8)}, ValueError, r"x: expected \[n, heads, 2h\]"),
        ({"x": torch.zeros(6, 2, 8)}, ValueError, r"cos, sin: expected \[6, 4\]"),
        ({"sin": torch.zeros(5, 8)}, ValueError, r"cos, sin: expected \[5, 4\]"),
        ({"cos": torch.zeros(5, 4, requires_grad=True)}, ValueError, "cos, sin: expected tensors without gradients"),
        ({"cos": torch.zeros(5, 4, dtype=torch.int64)}, TypeError, "cos: expected fp32"),
        ({"sin": torch.zeros(5, 4, device="meta")}, ValueError, "sin: expected device cpu"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    arguments = {"x": torch.zeros(5, 2, 3, 8), "cos": torch.zeros(5, 4), "sin": torch.zeros(5, 4)}
    with pytest.raises(error, match=message):
        ops.rotary(**(arguments | changes))
