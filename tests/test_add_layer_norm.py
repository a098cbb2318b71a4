"""add_layer_norm: every backend against the fp64 reference, both directions; the contract of the public function."""

import naive
import pytest
import torch
from accuracy import assert_accurate
from backends import BACKENDS, CPP, running
from elementwise import assert_matches, assert_same_bits, draw, odd_values, run
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import ops, reference

SHAPES = {
    "ModernBERT-base": (5, 768),
    "one token": (1, 32),
    "no token": (0, 32),
    "no multiple of the vector width": (7, 37),
    "narrower than a vector": (6, 3),
    "width one": (5, 1),
    "batched": (2, 3, 40),
    "one row": (48,),
    "many blocks of rows": (300, 72),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5


def inputs(shape, dtype=torch.float32, residual=True, bias=True, seed=0):
    """x, residual, weight, bias; a mean far from zero, weights about one."""
    x, other, weight, shift = draw(shape, shape, shape[-1:], shape[-1:], seed=seed, dtype=dtype)
    return [x + 3.0, other if residual else None, 1.0 + 0.3 * weight, shift if bias else None]


def normed_alone(*arguments):
    return ops.add_layer_norm(*arguments, return_sum=False)


def alone_by(function):
    return lambda *arguments: function(*arguments)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_are_as_accurate_as_eager(backend, shape, dtype):
    assert_matches(
        backend, ops.add_layer_norm, reference.add_layer_norm, naive.add_layer_norm, inputs(shape, dtype), [EPS]
    )


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("alone", [True, False], ids=["normed alone", "normed and sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend, residual, bias, alone):
    functions = (ops.add_layer_norm, reference.add_layer_norm, naive.add_layer_norm)
    if alone:
        functions = (normed_alone, alone_by(reference.add_layer_norm), alone_by(naive.add_layer_norm))
    assert_matches(backend, *functions, inputs((6, 40), residual=residual, bias=bias), [EPS])


@pytest.mark.parametrize("scale", [1e-6, 1e4], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_and_huge_values(backend, scale):
    x, residual, weight, bias = inputs((6, 40))
    floats = [scale * x, scale * residual, weight, bias]
    assert_matches(backend, ops.add_layer_norm, reference.add_layer_norm, naive.add_layer_norm, floats, [1e-12])


@pytest.mark.parametrize("where", ["x", "residual", "weight", "bias"])
@pytest.mark.parametrize("backend", CPP)
def test_nan_and_infinity_are_eagers(backend, where):
    """A NaN whatever its bits, an infinity: where eager PyTorch has one, in every result and gradient."""
    x, residual, weight, bias = inputs((16, 48), torch.bfloat16)
    floats = {"x": x, "residual": residual, "weight": weight.float(), "bias": bias.float()}
    changed = floats[where]
    values = odd_values(changed.dtype)
    values[9:12] = 1.0  # statistics in fp32 of the largest numbers overflow, in fp64 not: no one answer
    if changed.ndim == 2:
        changed[torch.arange(16), torch.arange(16) * 3] = values
    else:
        changed[::3] = values
    upstream = draw((16, 48), (16, 48), seed=1, dtype=torch.bfloat16)
    expected = run(reference.add_layer_norm, list(floats.values()), [EPS], upstream)
    with running(backend):
        got = run(ops.add_layer_norm, list(floats.values()), [EPS], upstream)
    for mine, eager in zip((*got[0], *got[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(mine.isnan(), eager.isnan())
        assert torch.equal(mine[mine.isinf()], eager[eager.isinf()])


@pytest.mark.parametrize("backend", CPP)
def test_the_sum_is_rounded_as_eagers(backend):
    """Ties, overflow to infinity, NaN."""
    x = odd_values(torch.bfloat16)[:, None] * torch.ones(48, dtype=torch.bfloat16)
    (residual,) = draw(x.shape, dtype=torch.bfloat16)
    residual[:, ::2] = x[:, ::2] / 256  # half a unit in the last place and less
    residual[:, 1::4] = x[:, 1::4]
    with running(backend):
        _, total = ops.add_layer_norm(x, residual, torch.ones(48))
    torch.testing.assert_close(total, x + residual, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_begins_unlike_its_mean(backend, dtype):
    """Statistics in one pass, about a guess from the row's beginning, must not lose digits where it is far off."""
    floats = inputs((6, 200), dtype)
    floats[0][:, :32] += 1000.0
    floats[0][3:, 32:] = 7.0
    assert_matches(backend, ops.add_layer_norm, reference.add_layer_norm, naive.add_layer_norm, floats, [EPS])


@pytest.mark.parametrize("backend", CPP)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(0, 60), width=st.integers(2, 150), bf16=st.booleans(), residual=st.booleans())
def test_ragged_shapes(backend, rows, width, bf16, residual):
    floats = inputs((rows, width), torch.bfloat16 if bf16 else torch.float32, residual=residual, seed=3)
    assert_matches(backend, ops.add_layer_norm, reference.add_layer_norm, naive.add_layer_norm, floats, [EPS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits(backend, dtype):
    rows = 30 if backend == "triton" else 2100
    assert_same_bits(backend, ops.add_layer_norm, inputs((rows, 38), dtype), [EPS])


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_without_gradients_are_the_same_bits(backend):
    with running(backend) as device:
        floats = [x.to(device) for x in inputs((7, 40))]
        with_gradients = ops.add_layer_norm(*(x.requires_grad_() for x in floats), EPS)
        with torch.no_grad():
            normed, total = ops.add_layer_norm(*floats, EPS)
            alone = ops.add_layer_norm(*floats, EPS, return_sum=False)
    assert torch.equal(normed, with_gradients[0]) and torch.equal(total, with_gradients[1])
    assert torch.equal(alone, normed)


@pytest.mark.parametrize("which", [0, 1], ids=["normed", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_one_result_alone(backend, which):
    floats = inputs((6, 40))
    (upstream,) = draw((6, 40), seed=1)
    doubles = [x.double().requires_grad_() for x in floats]
    eager = [x.clone().requires_grad_() for x in floats]
    definition = naive.add_layer_norm if backend == "reference" else reference.add_layer_norm
    expected = [
        torch.autograd.grad(function(*leaves, EPS)[which], leaves, upstream.to(leaves[0]), materialize_grads=True)
        for function, leaves in ((definition, doubles), (reference.add_layer_norm, eager))
    ]
    with running(backend) as device:
        mine = [x.to(device).requires_grad_() for x in floats]
        result = ops.add_layer_norm(*mine, EPS)[which]
        got = torch.autograd.grad(result, mine, upstream.to(device), materialize_grads=True)
    for values, truth, plain in zip(got, *expected, strict=True):
        assert_accurate(values.cpu(), truth, plain)


@pytest.mark.parametrize("expected", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_requested_gradients(backend, expected):
    with running(backend) as device:
        floats = [x.to(device) for x in inputs((20, 40))]
        every = [x.clone().requires_grad_() for x in floats]
        one = [x.clone().requires_grad_(place == expected) for place, x in enumerate(floats)]
        for leaves in (every, one):
            normed, total = ops.add_layer_norm(*leaves, EPS)
            (normed.square().sum() + total.square().sum()).backward()
    assert [x.grad is not None for x in one] == [place == expected for place in range(4)]
    assert torch.equal(one[expected].grad, every[expected].grad)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_gradcheck_in_fp64(backend, residual):
    floats = inputs((20, 5), torch.float64, residual=residual)
    leaves = [x.requires_grad_() for x in floats if x is not None]

    def function(*leaves):
        x, *rest = leaves
        return ops.add_layer_norm(x, rest[0] if residual else None, *rest[-2:], EPS)

    with running(backend):
        assert torch.autograd.gradcheck(function, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("options", [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend, options, needs_grad):
    residual, store_sum = options
    floats = inputs((5, 12), residual=residual)
    if needs_grad and (store_sum or not residual):
        floats = [None if x is None else x.requires_grad_() for x in floats]
    with running(backend):
        torch.library.opcheck(torch.ops.glimodern.add_layer_norm.default, (*floats, EPS, store_sum, False))
        x, grad, total, mean, rstd = *draw((5, 12), (5, 12), (5, 12), (5,)), torch.rand(5) + 0.5
        needed = (x, grad, total, inputs((5, 12))[2], mean, rstd, True, needs_grad, needs_grad, False)
        torch.library.opcheck(torch.ops.glimodern.add_layer_norm_backward.default, needed)


def test_compiles_without_a_graph_break():
    floats = [x.requires_grad_() for x in inputs((5, 12))]

    def model(*floats):
        normed, total = ops.add_layer_norm(*floats, EPS)
        return ops.add_layer_norm(normed * total, None, *floats[2:], EPS, return_sum=False)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (upstream,) = draw((5, 12), seed=1)
    assert torch.equal(compiled(*floats), model(*floats))
    results = (torch.autograd.grad(f(*floats), floats, upstream) for f in (compiled, model))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_backward_repeats_and_has_no_gradient_itself():
    floats = [x.requires_grad_() for x in inputs((5, 12))]
    upstream = draw((5, 12), (5, 12), seed=1)
    results = ops.add_layer_norm(*floats, EPS)
    first = torch.autograd.grad(results, floats, upstream, retain_graph=True)
    second = torch.autograd.grad(results, floats, upstream, retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    again = torch.autograd.grad(results, floats, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="add_layer_norm_backward"):
        again[0].sum().backward()


def test_mixed_dtypes():
    """Autocast: a bf16 branch joins an fp32 stream; fp32 weights norm bf16 rows."""
    x, residual, weight, bias = inputs((5, 12))
    leaves = [x.bfloat16().requires_grad_(), residual.requires_grad_(), weight.bfloat16().requires_grad_(), bias]
    normed, total = ops.add_layer_norm(*leaves, EPS)
    assert normed.dtype == total.dtype == torch.float32
    wanted, _ = reference.add_layer_norm(leaves[0].float(), residual, leaves[2].float(), bias, EPS)
    torch.testing.assert_close(normed, wanted)
    (normed.square().sum() + total.sum()).backward()
    assert [y.grad.dtype for y in leaves[:3]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert ops.add_layer_norm(x.bfloat16(), None, weight, bias, EPS)[0].dtype == torch.bfloat16


def test_inputs_of_any_layout():
    x, residual, weight, bias = inputs((6, 40))
    strided = [y.T.contiguous().T for y in (x, residual)]
    wide_weight = weight.repeat_interleave(2)[::2]
    expected = ops.add_layer_norm(x, residual, weight, bias, EPS)
    got = ops.add_layer_norm(*strided, wide_weight, bias, EPS)
    assert all(torch.equal(y, z) for y, z in zip(got, expected, strict=True))


def test_without_a_residual_the_sum_is_x():
    x, _, weight, bias = inputs((6, 40))
    assert ops.add_layer_norm(x, None, weight, bias, EPS)[1] is x


def test_the_registered_op_without_a_sum_says_why_it_has_no_gradient():
    floats = [x.requires_grad_() for x in inputs((6, 40))]
    normed, *_ = torch.ops.glimodern.add_layer_norm(*floats, EPS, False, False)
    with pytest.raises(RuntimeError, match="ran without store_sum"):
        normed.sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"residual": torch.zeros(5)}, ValueError, r"x, residual: expected one shape \[\.\.\., d\]"),
        ({"x": torch.zeros(())}, ValueError, r"x, residual: expected one shape \[\.\.\., d\]"),
        ({"weight": torch.zeros(5)}, ValueError, r"weight: expected \[8\]"),
        ({"bias": torch.zeros(3, 8)}, ValueError, r"bias: expected \[8\]"),
        ({"weight": torch.zeros(8, dtype=torch.int64)}, TypeError, "weight: expected fp32"),
        ({"weight": None}, TypeError, "weight: expected a tensor, got NoneType"),
        ({"bias": torch.zeros(8, device="meta")}, ValueError, "bias: expected device cpu"),
    ],
)
def test_bad_input_is_a_clear_error(changes, error, message):
    arguments = {"x": torch.zeros(3, 8), "residual": torch.zeros(3, 8), "weight": torch.ones(8), "bias": None}
    with pytest.raises(error, match=message):
        ops.add_layer_norm(**(arguments | changes))
