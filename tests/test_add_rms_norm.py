"""add_rms_norm: every backend against the fp64 reference, both directions; what it shares with add_layer_norm is tested
there."""

import naive
import pytest
import torch
from backends import BACKENDS, CPP, running
from elementwise import assert_matches, assert_same_bits, draw, odd_values, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_add_layer_norm import DTYPES, SHAPES

from glimodern import ops, reference

EPS = 1e-6
FUNCTIONS = (ops.add_rms_norm, reference.add_rms_norm, naive.add_rms_norm)


def inputs(shape, dtype=torch.float32, residual=True, seed=0):
    """x, residual, weight; a mean far from zero, which must not be taken away; weights about one."""
    x, other, weight = draw(shape, shape, shape[-1:], seed=seed, dtype=dtype)
    return [x + 3.0, other if residual else None, 1.0 + 0.3 * weight]


def normed_alone(*arguments):
    return ops.add_rms_norm(*arguments, return_sum=False)


def alone_by(function):
    return lambda *arguments: function(*arguments)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, shape, dtype):
    assert_matches(backend, *FUNCTIONS, inputs(shape, dtype), [EPS])


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("alone", [True, False], ids=["normed alone", "normed and sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend, residual, alone):
    functions = (normed_alone, *map(alone_by, FUNCTIONS[1:])) if alone else FUNCTIONS
    assert_matches(backend, *functions, inputs((6, 40), residual=residual), [EPS])


@pytest.mark.parametrize("scale", [1e-6, 1e4], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_and_huge_values(backend, scale):
    x, residual, weight = inputs((6, 40))
    assert_matches(backend, *FUNCTIONS, [scale * x, scale * residual, weight], [1e-12])


@pytest.mark.parametrize("where", ["x", "residual", "weight"])
@pytest.mark.parametrize("backend", CPP)
def test_nan_and_infinity_are_eagers(backend, where):
    x, residual, weight = inputs((16, 48), torch.bfloat16)
    floats = {"x": x, "residual": residual, "weight": weight.float()}
    changed = floats[where]
    values = odd_values(changed.dtype)
    values[9:12] = 1.0  # squares of the largest numbers overflow in fp32, in fp64 not: no one answer
    if changed.ndim == 2:
        changed[torch.arange(16), torch.arange(16) * 3] = values
    else:
        changed[::3] = values
    upstream = draw((16, 48), (16, 48), seed=1, dtype=torch.bfloat16)
    expected = run(reference.add_rms_norm, list(floats.values()), [EPS], upstream)
    with running(backend):
        got = run(ops.add_rms_norm, list(floats.values()), [EPS], upstream)
    for mine, eager in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(mine.isnan(), eager.isnan())


@pytest.mark.parametrize("backend", CPP)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(0, 60), width=st.integers(1, 150), bf16=st.booleans(), residual=st.booleans())
def test_ragged_shapes(backend, rows, width, bf16, residual):
    floats = inputs((rows, width), torch.bfloat16 if bf16 else torch.float32, residual=residual, seed=3)
    assert_matches(backend, *FUNCTIONS, floats, [EPS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits(backend, dtype):
    rows = 30 if backend == "triton" else 2100
    assert_same_bits(backend, ops.add_rms_norm, inputs((rows, 38), dtype), [EPS])


@pytest.mark.parametrize("expected", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_requested_gradients(backend, expected):
    with running(backend) as device:
        floats = [x.to(device) for x in inputs((20, 40))]
        every = [x.clone().requires_grad_() for x in floats]
        one = [x.clone().requires_grad_(place == expected) for place, x in enumerate(floats)]
        for leaves in (every, one):
            normed, total = ops.add_rms_norm(*leaves, EPS)
            (normed.square().sum() + total.square().sum()).backward()
    assert [x.grad is not None for x in one] == [place == expected for place in range(3)]
    assert torch.equal(one[expected].grad, every[expected].grad)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_gradcheck_in_fp64(backend, residual):
    leaves = [x.requires_grad_() for x in inputs((20, 5), torch.float64, residual=residual) if x is not None]

    def function(x, *rest):
        return ops.add_rms_norm(x, rest[0] if residual else None, rest[-1], EPS)

    with running(backend):
        assert torch.autograd.gradcheck(function, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend, needs_grad):
    x, residual, weight = inputs((5, 12))
    floats = [y.requires_grad_(needs_grad) for y in (x, residual, weight)]
    with running(backend):
        torch.library.opcheck(torch.ops.glimodern.add_layer_norm.default, (*floats, None, EPS, True, True))
        x, grad, total, none, rstd = *draw((5, 12), (5, 12), (5, 12), (0,)), torch.rand(5) + 0.5
        needed = (x, grad, total, inputs((5, 12))[2], none, rstd, True, needs_grad, False, True)
        torch.library.opcheck(torch.ops.glimodern.add_layer_norm_backward.default, needed)


def test_compiles_without_a_graph_break():
    floats = [x.requires_grad_() for x in inputs((5, 12))]

    def model(*floats):
        normed, total = ops.add_rms_norm(*floats, EPS)
        return ops.add_rms_norm(normed * total, None, floats[2], EPS, return_sum=False)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (upstream,) = draw((5, 12), seed=1)
    assert torch.equal(compiled(*floats), model(*floats))
    results = (torch.autograd.grad(f(*floats), floats, upstream) for f in (compiled, model))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_without_a_residual_the_sum_is_x():
    x, _, weight = inputs((6, 40))
    assert ops.add_rms_norm(x, None, weight, EPS)[1] is x


def test_bad_input_is_a_clear_error():
    with pytest.raises(ValueError, match=r"weight: expected \[8\]"):
        ops.add_rms_norm(torch.zeros(3, 8), None, torch.zeros(5))
