"""geglu: every backend against the fp64 reference, forward and backward; the contract of the public function."""

import math

import naive
import pytest
import torch
from backends import BACKENDS, CPP, running
from elementwise import assert_matches, assert_same_bits, draw, odd_values, run
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import ops, reference

SHAPES = {
    "ModernBERT-base": (3, 2304),
    "one token": (1, 32),
    "no token": (0, 32),
    "no multiple of the vector width": (7, 74),
    "width one": (5, 2),
    "no width": (4, 0),
    "batched": (2, 3, 40),
    "one row": (48,),
    "more than one thread's share": (300, 200),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, shape, dtype):
    (x,) = draw(shape, dtype=dtype)
    assert_matches(backend, ops.geglu, reference.geglu, naive.geglu, [2.0 * x])


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 30.0, 1e4], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_and_huge_values(backend, scale):
    a, b = draw((4, 40), (4, 40))
    assert_matches(backend, ops.geglu, reference.geglu, naive.geglu, [torch.cat([a * scale, b], -1)])


@pytest.mark.parametrize("which", [0, 1], ids=["a", "b"])
@pytest.mark.parametrize("backend", CPP)
def test_nan_and_infinity_are_eagers(backend, which):
    x, upstream = draw((3, 96), (3, 48), dtype=torch.bfloat16)
    x.view(3, 2, 48)[:, which, ::3] = odd_values(torch.bfloat16)
    (expected,), (expected_grad,) = run(reference.geglu, [x.float()], [], [upstream])
    with running(backend):
        (got,), (grad,) = run(ops.geglu, [x], [], [upstream])
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.bfloat16().isinf())
    if which:  # of b: the product's; of a: a phi(a) is infinity times zero in eager PyTorch, zero here
        assert torch.equal(grad.isnan(), expected_grad.isnan())


@pytest.mark.parametrize("backend", CPP)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(0, 60), width=st.integers(1, 150), bf16=st.booleans())
def test_ragged_shapes(backend, rows, width, bf16):
    (x,) = draw((rows, 2 * width), seed=3, dtype=torch.bfloat16 if bf16 else torch.float32)
    assert_matches(backend, ops.geglu, reference.geglu, naive.geglu, [x])


@pytest.mark.parametrize("backend", CPP)
def test_the_negative_tail_keeps_its_digits(backend):
    """Phi(a) to a few ulps down to the smallest normal number, where 1 + erf(a / sqrt 2) has none left."""
    a = torch.linspace(-13.0, 13.0, 20_001)
    cdf = 0.5 * torch.erfc(-a.double() * 0.5**0.5)
    density = torch.exp(-0.5 * a.double().square()) * (2.0 * math.pi) ** -0.5
    x = torch.stack([a, torch.ones_like(a)], -1).requires_grad_()
    with running(backend):
        y = ops.geglu(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y[:, 0].double(), a.double() * cdf, rtol=1e-6, atol=0.0)
    slope = cdf + a.double() * density  # crosses zero near a = -0.75
    torch.testing.assert_close(dx[:, 0].double(), slope, rtol=2e-6, atol=3e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [*CPP, "triton"])
def test_infinities_and_nan_are_the_formulas(backend, dtype):
    """Not those of eager in the same dtype: on CPUs with AVX-512, gelu(inf) is NaN there, gelu(3e38) infinity."""
    special = torch.tensor([math.inf, -1e30, 3e38, -0.0, 0.0, math.nan] * 3, dtype=dtype)  # in vectors and in the rest
    x = torch.cat([special, torch.ones_like(special)])
    with running(backend) as device:
        y = ops.geglu(x.to(device)).cpu()
        swapped = ops.geglu(x.roll(len(special)).to(device)).cpu()
    torch.testing.assert_close(y, reference.geglu(x.double()).to(dtype), rtol=0.0, atol=0.0, equal_nan=True)
    assert torch.equal(swapped.isnan(), special.isnan())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits(backend, dtype):
    assert_same_bits(backend, ops.geglu, draw((30 if backend == "triton" else 300, 202), dtype=dtype))


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_gradcheck_in_fp64(backend):
    x = draw((3, 10), dtype=torch.float64)[0].requires_grad_()
    with running(backend):
        assert torch.autograd.gradcheck(ops.geglu, x, nondet_tol=0.0)


@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(backend, needs_grad):
    x, grad = draw((5, 36), (5, 18))
    with running(backend):
        torch.library.opcheck(torch.ops.glimodern.geglu.default, (x.requires_grad_(needs_grad),))
        torch.library.opcheck(torch.ops.glimodern.geglu_backward.default, (grad, x.detach()))


def test_compiles_without_a_graph_break():
    x = draw((5, 36))[0].requires_grad_()

    def model(x):
        return ops.geglu(x * 2.0).square()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    upstream = torch.ones(5, 18)
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(torch.autograd.grad(compiled(x), x, upstream)[0], torch.autograd.grad(model(x), x, upstream)[0])


def test_backward_repeats_and_has_no_gradient_itself():
    x, upstream = draw((5, 36), (5, 18))
    y = ops.geglu(x.requires_grad_())
    first = torch.autograd.grad(y, x, upstream, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x, upstream, retain_graph=True)[0])
    (again,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="geglu_backward"):
        again.sum().backward()


def test_inputs_of_any_layout():
    x, upstream = draw((36, 6), (6, 18))
    assert torch.equal(ops.geglu(x.T), ops.geglu(x.T.contiguous()))
    leaf = x.T.contiguous().requires_grad_()
    strided = torch.autograd.grad(ops.geglu(leaf), leaf, upstream.T.contiguous().T)[0]
    assert torch.equal(strided, torch.autograd.grad(ops.geglu(leaf), leaf, upstream)[0])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 5), ValueError, r"x: expected \[..., 2h\]"),
        (torch.zeros(()), ValueError, r"x: expected \[..., 2h\]"),
        (torch.zeros(3, 4, dtype=torch.int32), TypeError, "x: expected fp32"),
        ([1.0, 2.0], TypeError, "x: expected a tensor, got list"),
    ],
)
def test_bad_input_is_a_clear_error(x, error, message):
    with pytest.raises(error, match=message):
        ops.geglu(x)
