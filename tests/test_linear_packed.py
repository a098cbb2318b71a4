"""linear_packed: int8 against tests/naive.py bit by bit, floats by the accuracy rule; packing and layers."""

import contextlib
import copy
import functools
import math
import pickle
from collections.abc import Iterator

import naive
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from backends import CPP, assert_same_bits, extension, outputs_by_threads, poisoned, running
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glimodern import ops
from glimodern.layers.packed_linear import PackedLinear, pack_linears
from glimodern.ops import PackedWeight, QuantisedWeight, linear_packed
from glimodern.reference.linear_packed import (
    ACTIVATIONS,
    GATED,
    quantise_rows,
    quantise_weight,
    scale_inputs,
    sum_groups,
)

SHAPES = [  # n, i, o
    (0, 5, 3),
    (1, 1, 1),
    (3, 0, 5),
    (2, 4, 0),
    (7, 37, 19),
    (4, 8, 16),
    (45, 384, 200),
    (13, 770, 130),
    (30, 4096, 70),
    (401, 40, 17),
    (700, 520, 33),
]
KINDS = (*CPP, "cpp-avx512-without-vnni", "cpp-amx")
BF16_BACKENDS = (*CPP, "cpp-avx512_bf16", "cpp-amx")
DTYPES = [torch.float32, torch.bfloat16]


@contextlib.contextmanager
def kernels(kind: str) -> Iterator[None]:
    """A backend of CPP, with avx512's kernels for processors without VNNI under a name of their own."""
    with running(kind.removesuffix("-without-vnni")):
        if not kind.endswith("-without-vnni"):
            yield
            return
        extension.allow_vnni(False)
        try:
            yield
        finally:
            extension.allow_vnni(True)


def draw(n: int, i: int, o: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias; columns of x and rows of the weight of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in ((n, i), (o, i), (o,)))
    spread = torch.rand(i, generator=generator) * 3.0, torch.rand(o, 1, generator=generator)
    return x * spread[0], weight * spread[1], bias


DEFINITIONS = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp(min=0.0),
    "gelu": naive.gelu,
    "gelu_tanh": naive.gelu_tanh,
    "geglu": naive.geglu,
    "geglu_tanh": functools.partial(naive.gated, naive.gelu_tanh),
    "swiglu": functools.partial(naive.gated, naive.silu),
}


def expected_int8(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    return DEFINITIONS[activation](naive.linear_int8(x, weight, bias))


@functools.cache
def drawn_sums(shape: tuple[int, ...], dtype: torch.dtype, with_bias: bool) -> Tensor:
    """`expected_int8` of drawn values, which takes seconds, once for all kinds of kernels."""
    x, weight, bias = draw(*shape)
    return expected_int8(x.to(dtype), weight, bias if with_bias else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_the_naive_product_bit_by_bit(kind, shape, dtype):
    x, weight, bias = draw(*shape)
    x = x.to(dtype)
    before = x.clone()
    with kernels(kind), poisoned():
        for b in (bias, None):
            sums = drawn_sums(shape, dtype, b is not None)
            for activation in ("none", "relu"):
                y = linear_packed(x, PackedWeight.pack(weight, b), activation)
                assert y.dtype == dtype
                assert torch.equal(y, DEFINITIONS[activation](sums).to(dtype))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_int8_gelu(activation, kind, dtype):
    x, weight, bias = draw(45, 200, 37)
    sums = expected_int8(x.to(dtype), weight, bias)
    with kernels(kind):
        y = linear_packed(x.to(dtype), PackedWeight.pack(weight, bias), activation)
    assert_accurate(y, DEFINITIONS[activation](sums.double()), ACTIVATIONS[activation](sums).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("reference", *KINDS))
@pytest.mark.parametrize("h", [1, 8, 19, 32, 57])
@pytest.mark.parametrize("activation", GATED)
def test_int8_gates(activation, h, kind, dtype):
    x, weight, bias = draw(45, 200, 2 * h)
    sums = expected_int8(x.to(dtype), weight, bias)
    with running("reference") if kind == "reference" else kernels(kind), poisoned():
        packed = PackedWeight.pack(weight, bias, gated=True)
        y = linear_packed(x.to(dtype), packed, activation)
    assert_accurate(y, DEFINITIONS[activation](sums.double()), ACTIVATIONS[activation](sums).to(dtype))
    assert (packed.unpack() - weight).abs().max() <= 0.03 * weight.abs().max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "weights"),
    [*((name, "fp32") for name in ("reference", *CPP)), *((name, "bf16") for name in ("reference", *BF16_BACKENDS))],
)
def test_floats_are_as_accurate_as_eager(backend, weights, shape, dtype, activation):
    gated = activation in GATED
    n, i, o = shape
    x, weight, bias = draw(n, i, 2 * o if gated else o)
    x = x.to(dtype)
    before = x.clone()
    rounded = torch.float32 if weights == "fp32" else torch.bfloat16
    known = x.to(rounded).float(), weight.to(rounded).float()
    for b in (bias, None):
        with running(backend), poisoned():
            packed = PackedWeight.pack(weight, b, weights, gated=gated)
            y = linear_packed(x, packed, activation)
        assert torch.equal(packed.unpack(), weight.to(rounded)) and y.shape == (n, o)
        assert packed.unpack_bias() is None if b is None else torch.equal(packed.unpack_bias(), b)
        double = None if b is None else b.double()
        truth = DEFINITIONS[activation](F.linear(known[0].double(), known[1].double(), double))
        eager = ACTIVATIONS[activation](F.linear(*known, b)).to(dtype)
        assert y.dtype == dtype
        assert_accurate(y, truth, eager)
    assert torch.equal(x, before)


SIGMOIDS = {  # activation: what x is multiplied by the sigmoid of
    "gelu_tanh": lambda x: 2.0 * (2.0 / math.pi) ** 0.5 * (x + 0.044715 * x**3),
    "geglu_tanh": lambda x: 2.0 * (2.0 / math.pi) ** 0.5 * (x + 0.044715 * x**3),
    "swiglu": lambda x: x,
}


@pytest.mark.parametrize("backend", CPP)
@pytest.mark.parametrize("activation", SIGMOIDS)
def test_sigmoids_of_every_size(activation, backend):
    """Relatively accurate down to where the sigmoid is smaller than fp32's numbers; infinity and NaN are eager's."""
    gated, sizes = activation in GATED, torch.logspace(-30, 18, 97)
    x = torch.cat([-sizes, torch.zeros(1), sizes, torch.linspace(-100.0, 100.0, 401)])
    x = torch.cat([x, torch.tensor([math.inf, -math.inf, math.nan])])[:, None]
    packed = PackedWeight.pack(torch.ones(2 if gated else 1, 1), None, "fp32", gated=gated)
    with running(backend), poisoned():
        y = linear_packed(x, packed, activation)
    eager = ACTIVATIONS[activation](x.repeat(1, 2) if gated else x)
    torch.testing.assert_close(y[-3:], eager[-3:], rtol=0.0, atol=0.0, equal_nan=True)
    doubles = x[:-3].double()
    truth = doubles * SIGMOIDS[activation](doubles).sigmoid() * (doubles if gated else 1.0)
    bound = 4e-5 * truth.abs() + 1e-35 * doubles.abs().clamp(min=1.0) ** 2
    assert bool(((y[:-3].double() - truth).abs() <= bound).all())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(0, 60), i=st.integers(1, 150), o=st.integers(1, 100), to_bf16=st.booleans())
def test_ragged_shapes(kind, n, i, o, to_bf16):
    x, weight, bias = draw(n, i, o, seed=3)
    dtype = torch.bfloat16 if to_bf16 else torch.float32
    with kernels(kind):
        y = linear_packed(x, PackedWeight.pack(weight, bias), dtype=dtype)
        assert torch.equal(y, expected_int8(x, weight, bias).to(dtype))
        y = linear_packed(x, PackedWeight.pack(weight, bias, "fp32"), dtype=dtype)
        bf16 = linear_packed(x, PackedWeight.pack(weight, bias, "bf16"), dtype=dtype)
    truth = F.linear(x.double(), weight.double(), bias.double())
    assert_accurate(y, truth, F.linear(x, weight, bias).to(dtype))
    x, weight = x.bfloat16().float(), weight.bfloat16().float()
    truth = F.linear(x.double(), weight.double(), bias.double())
    assert_accurate(bf16, truth, F.linear(x, weight, bias).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_sums_do_not_saturate(kind):
    """Weights and rows that fill the 16-bit sums of csrc/linear_packed/avx2.cpp to their bounds, of either sign."""
    signs = torch.tensor([[1.0] * 64, [-1.0] * 64, [1.0, -1.0] * 32, [1.0, 1.0, -1.0, -1.0] * 16])
    weight = torch.cat([signs, signs * torch.tensor([4.0, 0.01, 0.01, 0.01] * 16)])
    x = torch.cat([signs, torch.ones(1, 64), -torch.ones(1, 64)])
    with kernels(kind):
        y = linear_packed(x, PackedWeight.pack(weight))
    assert torch.equal(y, expected_int8(x, weight, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("reference", *KINDS))
def test_extreme_rows(kind, dtype):
    x, weight, bias = draw(11, 75, 33)
    x[1] = 0.0
    x[2] *= 1e30
    x[3] *= 1e-36
    x[4] = 1e-42
    x[5, 70] = 1e4
    x[6] *= 1e-20
    for row, value in ((8, math.nan), (9, math.inf), (10, -math.inf)):
        x[row, 74 if row == 9 else 3] = value
    x = x.to(dtype)
    with running("reference") if kind == "reference" else kernels(kind), poisoned():
        for activation in ("none", "relu"):
            y = linear_packed(x, PackedWeight.pack(weight, bias), activation)
            assert torch.equal(y[:8], expected_int8(x, weight, bias, activation)[:8].to(dtype))
            assert bool(y[8:].isnan().all()) and bool(y[:8].isfinite().all())
            assert torch.equal(y[1], ACTIVATIONS[activation](bias).to(dtype))
        floats = [linear_packed(x, PackedWeight.pack(weight, bias, name)) for name in ("fp32", "bf16")]
    for y in floats:
        assert bool(y[:8].isfinite().all()) and not bool(y[8:].isfinite().any()) and bool(y[8].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("reference", *KINDS))
def test_scaled_inputs_are_the_naive_product_bit_by_bit(kind, dtype):
    for shape in ((7, 37, 19), (45, 384, 40)):
        x, weight, bias = draw(*shape)
        x = x.to(dtype)
        sizes = x.float().abs().amax(0)
        scale = scale_inputs(weight, sizes)
        with running("reference") if kind == "reference" else kernels(kind), poisoned():
            packed = PackedWeight.pack(weight, bias, input_sizes=sizes)
            y = linear_packed(x, packed)
        assert torch.equal(y, expected_int8(x.float() * scale, weight / scale, bias).to(dtype))
        assert (packed.unpack() - weight).abs().max() <= 0.03 * weight.abs().max()


def test_scaling_inputs_helps_where_some_are_always_large():
    x, weight, bias = draw(60, 256, 40)
    x[:, [3, 200]] *= 40.0
    truth = F.linear(x, weight, bias)
    plain, scaled = (linear_packed(x, PackedWeight.pack(weight, bias, input_sizes=s)) for s in (None, x.abs().amax(0)))
    assert (scaled - truth).square().mean() < 0.3 * (plain - truth).square().mean()
    with pytest.raises(ValueError, match=r"input_sizes: expected \[256\] \(one per input\), got \(255,\)"):
        PackedWeight.pack(weight, bias, input_sizes=x[0, 1:])


def test_inputs_that_were_never_seen_are_not_magnified():
    weight, sizes = torch.ones(4, 8), torch.tensor([0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 9.0])
    scale = scale_inputs(weight, sizes)
    assert scale.log().mean().abs() < 1e-6 and scale[7] < scale[2] == scale[0]  # below half the mean
    assert bool(scale_inputs(torch.zeros(4, 8), torch.zeros(8)).isfinite().all())


def test_a_row_does_not_depend_on_the_others():
    x, weight, bias = draw(50, 75, 33)
    for dtype in ("int8", "bf16", "fp32"):
        packed = PackedWeight.pack(weight, bias, dtype)
        together = linear_packed(x, packed)
        assert torch.equal(together, torch.cat([linear_packed(row[None], packed) for row in x]))


@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("kind", (*KINDS, "cpp-avx512_bf16"))
def test_same_bits_for_every_number_of_threads(kind, dtype):
    for shape in ((3, 96, 500), (45, 384, 200), (1500, 64, 40)):
        x, weight, bias = draw(*shape)
        packed = PackedWeight.pack(weight, bias, dtype)
        with kernels(kind):
            assert_same_bits(*outputs_by_threads(lambda x=x, packed=packed: [linear_packed(x, packed, "gelu")]))


@pytest.mark.parametrize("shape", [(1, 1), (37, 19), (130, 770), (16, 8), (5, 0)], ids=str)
def test_packing_and_back(shape):
    weight, bias = torch.randn(*shape), torch.randn(shape[0])
    packed = PackedWeight.pack(weight, bias, "fp32")
    assert torch.equal(packed.unpack(), weight) and torch.equal(packed.unpack_bias(), bias)
    half = PackedWeight.pack(weight.bfloat16(), None, "fp32")
    assert torch.equal(half.unpack(), weight.bfloat16().float()) and half.unpack_bias() is None
    packed = PackedWeight.pack(weight, bias, "bf16")
    assert torch.equal(packed.unpack(), weight.bfloat16()) and torch.equal(packed.unpack_bias(), bias)
    q, scale = quantise_weight(weight)
    packed = PackedWeight.pack(weight, bias)
    assert torch.equal(packed.unpack(), q[:, : shape[1]] * scale[:, None])
    assert bool(((packed.unpack() - weight).abs() <= scale[:, None] * 0.501).all())


def test_weights_are_quantised_within_the_bounds_of_16_bit_sums():
    weight = torch.randn(300, 64) * torch.rand(300, 1)
    weight[0], weight[1, 3] = 1.0, 50.0
    q, _ = quantise_weight(weight)
    groups = sum_groups(q.int())
    assert groups.clamp(min=0).sum(-1).max() <= 128 and groups.clamp(max=0).sum(-1).min() >= -128
    assert q.int().abs().max() <= 127
    assert q.int().abs().amax(1).min() >= 31  # the equal weights of row 0: 126 / 4
    indices = sum_groups(torch.arange(16.0)[None])[0]
    assert indices[:2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]] and indices[2, 0] == 8


def test_rows_are_quantised_to_half_a_step():
    x, *_ = draw(20, 50, 1)
    x[:5].relu_()
    x[5:10] = -x[5:10].abs() - 3.0  # 0 is represented all the same
    q, scale, zero = quantise_rows(x)
    assert q.min() == 0.0 and q.max() == 255.0 and bool((q.amax(1) - q.amin(1))[:5].eq(255.0).all())
    assert zero[:5].tolist() == [[0.0]] * 5 and zero[5:10].tolist() == [[255.0]] * 5
    assert bool((((q - zero) * scale - x).abs() <= scale * 0.5001).all())


def test_a_row_of_opposite_extremes_saturates_without_losing_a_step():
    q, scale, zero = quantise_rows(torch.tensor([[255.0, -255.0, 0.0], [255e36, -255e36, 0.0]]))  # 127.5 steps each
    assert q.tolist() == [[255.0, 0.0, 128.0]] * 2 and zero.tolist() == [[128.0]] * 2
    assert bool(scale.isfinite().all())


@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("backend", ["reference", "cpp-scalar"])
def test_opcheck(backend, dtype):
    x, weight, bias = draw(5, 20, 7)
    p = PackedWeight.pack(weight, bias, dtype)
    with running(backend):
        torch.library.opcheck(
            torch.ops.glimodern.linear_packed.default,
            (x, *p.tensors, x.new_zeros(5, 0), x.new_zeros(0), 7, "relu", torch.float32),
        )


def test_compiles_without_a_graph_break():
    x, weight, bias = draw(5, 20, 7)
    layer = PackedLinear(nn.Linear(20, 7))

    def model(x):
        return layer(x * 2.0).square()

    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_any_leading_dimensions_and_layout():
    x, weight, bias = draw(24, 20, 7)
    packed = PackedWeight.pack(weight, bias)
    y = linear_packed(x, packed)
    assert torch.equal(linear_packed(x.view(2, 3, 4, 20), packed), y.view(2, 3, 4, 7))
    assert torch.equal(linear_packed(x[3], packed), y[3])
    assert torch.equal(linear_packed(x.T.contiguous().T, packed), y)
    assert linear_packed(x.double(), packed).dtype == torch.float64


def test_packed_layers_take_the_place_of_plain_ones():
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    model = nn.Sequential(nn.Linear(64, 96, bias=False), shared, nn.Sequential(shared, nn.Linear(96, 3))).eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    assert pack_linears(model, "fp32") == 3
    assert isinstance(model[0], PackedLinear) and model[1] is model[2][0] and isinstance(model[2][1], PackedLinear)
    assert "in_features=64, out_features=96, bias=False, fp32" in repr(model)
    saved = model.state_dict()
    assert saved.keys() == plain.keys() and all(torch.equal(saved[name], plain[name]) for name in plain)
    assert not list(model[0].parameters()) and model.to(torch.bfloat16)[0].packed.dtype == "fp32"


def test_bf16_layers_are_saved_as_the_plain_ones_in_bf16():
    plain = nn.Linear(64, 70)
    model = nn.Sequential(PackedLinear(plain, "bf16"))
    saved = model.state_dict()
    assert torch.equal(saved["0.weight"], plain.weight.bfloat16()) and saved["0.weight"].dtype == torch.bfloat16
    assert torch.equal(saved["0.bias"], plain.bias) and model[0].packed.nbytes < 64 * 80 * 2 + 80 * 4 + 1


def test_int8_layers_are_saved_as_they_were_quantised():
    """By what the weight and its inputs are, without the order of panels."""
    torch.manual_seed(0)
    plain, sizes = nn.Linear(64, 70), torch.rand(64) + 0.1
    with_inputs = PackedLinear(plain, "int8", "geglu", sizes)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3), with_inputs)
    first = model[0].weight.detach().clone()
    assert pack_linears(model, "int8") == 2
    assert model[0].packed.nbytes < 64 * 64 * 1.25
    saved = model.state_dict()
    assert saved["1.weight"].dtype == torch.float32 and "1.weight_scale" not in saved  # small ones stay exact
    weight, scale = quantise_weight(first)
    assert torch.equal(saved["0.weight"], weight) and torch.equal(saved["0.weight_scale"], scale)
    factors = scale_inputs(plain.weight.detach(), sizes)
    weight, scale = quantise_weight(plain.weight.detach() / factors)
    assert torch.equal(saved["2.weight"], weight) and torch.equal(saved["2.weight_scale"], scale)
    assert torch.equal(saved["2.input_scale"], factors) and torch.equal(saved["2.bias"], plain.bias)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (38, 72), (64, 200)])
def test_of_quantised_is_the_packed_weight(shape, gated):
    torch.manual_seed(0)
    weight, bias, sizes = torch.randn(shape), torch.randn(shape[0]), torch.rand(shape[1])
    for inputs in (None, sizes):
        packed = PackedWeight.pack(weight, bias, "int8", inputs, gated=gated)
        again = PackedWeight.of_quantised(packed.quantised(), bias, gated=gated)
        assert all(torch.equal(a, b) for a, b in zip(packed.tensors, again.tensors, strict=True))
        assert (again.outputs, again.inputs, again.gated, again.has_bias) == (packed.outputs, shape[1], gated, True)
    with pytest.raises(ValueError, match=r"weight: expected one packed in int8, got bf16; use unpack\(\)"):
        PackedWeight.pack(weight, bias, "bf16").quantised()


@pytest.mark.parametrize("gated", [False, True])
def test_plus_packs_the_sum(gated):
    torch.manual_seed(0)
    weight, bias, sizes = torch.randn(38, 72), torch.randn(38), 0.5 + torch.rand(72)
    update = torch.randn(38, 3) @ torch.randn(3, 72)
    for dtype, inputs in (("fp32", None), ("bf16", None), ("int8", None), ("int8", sizes)):
        packed = PackedWeight.pack(weight, bias, dtype, inputs, gated=gated)
        before = [x.clone() for x in packed.tensors]
        both = packed.plus(update)
        assert all(torch.equal(a, b) for a, b in zip(packed.tensors, before, strict=True))
        assert (both.dtype, both.gated, both.outputs) == (dtype, gated, packed.outputs)
        assert torch.equal(both.unpack_bias(), bias) and torch.equal(both.input_scale, packed.input_scale)
        exact, step = packed.unpack().float() + update, {"fp32": 0.0, "bf16": 2**-8}.get(dtype)
        scales = both.quantised().scale[:, None] if dtype == "int8" else None
        factors = both.input_scale if both.input_scale.numel() else torch.ones(72)
        bound = step * exact.abs() if step is not None else 0.501 * scales * factors
        assert bool(((both.unpack().float() - exact).abs() <= bound).all())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight": torch.zeros(6, 5)}, r"weight: expected int8 \[o, i\], got torch.float32 \(6, 5\)"),
        ({"scale": torch.ones(5)}, r"scale: expected fp32 \[6\], got torch.float32 \(5,\)"),
        ({"scale": torch.ones(6).double()}, r"scale: expected fp32 \[6\], got torch.float64"),
        ({"scale": torch.zeros(6)}, "scale: expected positive numbers"),
        ({"input_scale": torch.ones(6)}, r"input_scale: expected fp32 \[5\], got torch.float32 \(6,\)"),
        ({"input_scale": torch.full((5,), torch.nan)}, "input_scale: expected positive numbers"),
    ],
)
def test_quantised_weights_are_checked(change, match):
    good = QuantisedWeight(torch.ones(6, 5, dtype=torch.int8), torch.ones(6), torch.ones(5))
    PackedWeight.of_quantised(good)
    with pytest.raises(ValueError, match=match):
        PackedWeight.of_quantised(good._replace(**change))


def test_training_is_refused():
    layer = PackedLinear(nn.Linear(8, 4))
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(ValueError, match="inference only; .* or load the model in fp32 to train"):
        layer(x)
    with torch.no_grad():
        assert not layer(x).requires_grad


WEIGHT = PackedWeight.pack(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 4), WEIGHT), ValueError, r"x: expected \[\.\.\., 5\], got \(2, 4\)"),
        ((torch.zeros(()), WEIGHT), ValueError, r"x: expected \[\.\.\., 5\]"),
        ((torch.zeros(2, 5, dtype=torch.int32), WEIGHT), TypeError, "x: expected a float tensor"),
        (([1.0], WEIGHT), TypeError, "x: expected a float tensor, got list"),
        ((torch.zeros(2, 5), WEIGHT, "geglu"), ValueError, "pack it with gated=True"),
        ((torch.zeros(2, 5), WEIGHT, "swiglu"), ValueError, "expected any but geglu, geglu_tanh, swiglu for a weight"),
        ((torch.zeros(2, 5), PackedWeight.pack(torch.zeros(4, 5), gated=True)), ValueError, "expected one of geglu"),
        ((torch.zeros(2, 5), WEIGHT, "tanh"), ValueError, "activation: expected one of none, relu, gelu"),
        ((torch.zeros(2, 5), WEIGHT, "none", torch.int8), TypeError, "dtype: expected a float dtype"),
        ((torch.zeros(2, 5, device="meta"), WEIGHT), ValueError, "x: expected device cpu"),
    ],
)
def test_bad_input_is_a_clear_error(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_packed(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 5), None, "int4"), "dtype: expected one of 'fp32', 'bf16', 'int8'"),
        ((torch.zeros(3),), r"weight: expected a float tensor \[o, i\]"),
        ((torch.zeros(3, 5, dtype=torch.int8),), "weight: expected a float tensor"),
        ((torch.zeros(3, 5), torch.zeros(5)), r"bias: expected \[3\]"),
        ((torch.full((3, 5), math.inf),), "weight: expected finite elements"),
        ((torch.zeros(1, 65_537),), "weight: expected at most 65,536 inputs"),
    ],
)
def test_bad_weights_are_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        PackedWeight.pack(*arguments)


@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp32"])
def test_copies_have_a_weight_of_their_own(dtype):
    x, weight, bias = draw(5, 24, 16)
    packed = PackedWeight.pack(weight, bias, dtype)
    y = linear_packed(x, packed)
    copies = copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))
    packed.panels.zero_()
    assert all(torch.equal(linear_packed(x, other), y) for other in copies)
    assert not torch.equal(linear_packed(x, packed), y)


def test_two_halves_are_needed_to_be_gated():
    with pytest.raises(ValueError, match="an even number of rows, two halves, for gated=True, got 3"):
        PackedWeight.pack(torch.zeros(3, 5), gated=True)


def test_backend_info_names_it():
    assert ops.backend_info("cpu")["linear_packed"]["backend"] in ("cpp", "reference")


@pytest.mark.parametrize("shape", [(37, 4100, 200), (45, 17_000, 70), (70, 384, 1500)], ids=str)
@pytest.mark.parametrize("kind", (*KINDS, "cpp-avx512_bf16"))
def test_weights_of_many_panels_or_many_chunks(kind, shape):
    """Weights that csrc/linear_packed/amx.cpp cuts into groups of panels and chunks of inputs, both with a rest."""
    x, weight, bias = draw(*shape)
    packed = PackedWeight.pack(weight, bias)
    with running("reference"):
        expected = linear_packed(x, packed)
    with kernels(kind), poisoned():
        assert torch.equal(linear_packed(x, packed), expected)
    known = x.bfloat16(), weight.bfloat16(), bias
    truth = F.linear(*(tensor.double() for tensor in known))
    packed = PackedWeight.pack(weight, bias, "bf16")
    with kernels(kind), poisoned():
        y = linear_packed(x, packed)
        assert_accurate(y, truth, F.linear(*(tensor.float() for tensor in known)))
        assert torch.equal(y, torch.cat([linear_packed(rows, packed) for rows in x.split(9)]))
