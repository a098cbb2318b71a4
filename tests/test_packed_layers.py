"""Two layers packed as one gate: what they compute, save and update; which layers are fused and which are not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from glimodern.layers.packed_layers import PackedFactor, PackedGate, pack_layers
from glimodern.layers.packed_linear import PackedLinear, input_sizes, measured_inputs
from glimodern.layers.quantised import hold_quantised
from glimodern.reference.linear_packed import scale_inputs

ACTIVATIONS = {"gelu": "geglu", "gelu_new": "geglu_tanh", "gelu_pytorch_tanh": "geglu_tanh", "silu": "swiglu"}


class Gated(nn.Module):
    """As EuroBERT's feed-forward."""

    def __init__(self, activation: str = "silu", bias: bool = True, width: int = 72) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(80, width, bias=bias), nn.Linear(80, width, bias=bias)
        self.down_proj = nn.Linear(width, 80, bias=bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class GatedT5(nn.Module):
    """As T5's feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.wi_0, self.wi_1, self.act = (
            nn.Linear(80, 72, bias=False),
            nn.Linear(80, 72, bias=False),
            ACT2FN["gelu_new"],
        )

    def forward(self, x):
        return self.act(self.wi_0(x)) * self.wi_1(x)


def drawn(kind=Gated, *arguments):
    torch.manual_seed(0)
    return kind(*arguments).eval().requires_grad_(False), torch.randn(9, 80)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS.items())
def test_a_gate_is_its_two_layers(activation, name, bias):
    mlp, x = drawn(Gated, activation, bias)
    wanted, plain = mlp(x), {key: value.clone() for key, value in mlp.state_dict().items()}
    assert pack_layers(mlp, "fp32") == 3
    assert type(mlp.gate_proj) is PackedGate and type(mlp.up_proj) is PackedFactor
    assert mlp.gate_proj.activation == name and mlp.gate_proj.packed is mlp.up_proj.packed
    torch.testing.assert_close(mlp(x), wanted)
    saved = mlp.state_dict()
    assert list(saved) == list(plain) and all(torch.equal(saved[key], plain[key]) for key in plain)


def test_the_gate_of_t5():
    mlp, x = drawn(GatedT5)
    wanted = mlp(x)
    assert pack_layers(mlp, "fp32") == 2 and mlp.wi_0.activation == "geglu_tanh"
    torch.testing.assert_close(mlp(x), wanted)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"])
def test_gelus_by_tanh_are_one(activation):
    layer = nn.Module()
    layer.dense, layer.intermediate_act_fn = nn.Linear(80, 72), ACT2FN[activation]
    x = torch.randn(9, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = layer.intermediate_act_fn(layer.dense(x))
        assert pack_layers(layer, "fp32") == 1 and layer.dense.activation == "gelu_tanh"
        torch.testing.assert_close(layer.dense(x), wanted)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_other_dtypes(dtype):
    mlp, x = drawn()
    wanted = mlp(x)
    with measured_inputs(mlp):
        mlp(x)
    factors = scale_inputs(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), input_sizes(mlp.up_proj))
    pack_layers(mlp, dtype)
    error = (mlp(x) - wanted).square().mean().sqrt()
    assert 0 < error < 0.05 * wanted.square().mean().sqrt()
    if dtype == "int8":
        saved = mlp.state_dict()
        assert torch.equal(saved["gate_proj.input_scale"], factors)
        assert torch.equal(saved["up_proj.input_scale"], factors) and saved["up_proj.weight"].dtype == torch.int8


def test_small_gates_are_exact_in_int8():
    mlp, x = drawn(Gated, "silu", True, 48)
    wanted = mlp(x)
    pack_layers(mlp, "int8")
    assert mlp.gate_proj.packed.dtype == "fp32"
    torch.testing.assert_close(mlp(x), wanted)


def stored(mlp):
    """A plain module that holds the int8 weights of a packed one."""
    state = mlp.state_dict()
    again, _ = drawn()
    hold_quantised(again, state)
    again.load_state_dict(state, assign=True)
    return again


@pytest.mark.parametrize("measured", [True, False])
def test_a_stored_gate_is_packed_as_it_was(measured):
    mlp, x = drawn()
    if measured:
        with measured_inputs(mlp):
            mlp(x)
    pack_layers(mlp, "int8")
    again = stored(mlp)
    assert pack_layers(again, "int8") == 3 and type(again.gate_proj) is PackedGate
    assert all(
        torch.equal(a, b) for a, b in zip(again.gate_proj.packed.tensors, mlp.gate_proj.packed.tensors, strict=True)
    )
    assert torch.equal(again(x), mlp(x))


@pytest.mark.parametrize("change", [lambda scale: scale * 2.0, lambda scale: None])
def test_layers_stored_with_other_factors_stay_two(change):
    mlp, x = drawn()
    with measured_inputs(mlp):
        mlp(x)
    pack_layers(mlp, "int8")
    again = stored(mlp)
    again.up_proj._buffers["input_scale"] = change(again.up_proj._buffers["input_scale"])
    assert pack_layers(again, "int8") == 3
    assert [type(layer) for layer in (again.gate_proj, again.up_proj)] == [PackedLinear] * 2
    assert not isinstance(again.act_fn, nn.Identity)


def other_bias(mlp):
    mlp.up_proj.bias = None


def other_width(mlp):
    mlp.up_proj = nn.Linear(80, 1)


def other_class(mlp):
    mlp.up_proj = nn.Bilinear(80, 80, 72)


def subclass(mlp):
    mlp.gate_proj.__class__ = type("Lora", (nn.Linear,), {})


def other_activation(mlp):
    mlp.act_fn = nn.Mish()


@pytest.mark.parametrize("change", [other_bias, other_width, other_class, subclass, other_activation])
def test_layers_that_cannot_be_one_stay_two(change):
    mlp, x = drawn()
    change(mlp)
    activation = mlp.act_fn
    pack_layers(mlp, "fp32")
    assert not any(isinstance(layer, (PackedGate, PackedFactor)) for layer in mlp.modules())
    assert mlp.act_fn is activation


@pytest.mark.parametrize("order", [(0,), (1,), (0, 1), (1, 0), (0, 1, 0)])
def test_each_layer_is_updated_by_itself(order):
    """The last update of a layer counts; ranks may differ."""
    mlp, x = drawn()
    names = ("gate_proj", "up_proj")
    plain = copy.deepcopy(mlp)
    before = {name: plain.get_parameter(f"{name}.weight").clone() for name in names}
    pack_layers(mlp, "fp32")
    unchanged = copy.deepcopy(mlp)
    for half in order:
        layer = mlp.get_submodule(names[half])
        assert layer.weight_shape == (72, 80)
        a, b = 0.1 * torch.randn(2 + half, 80), torch.randn(72, 2 + half)
        layer.update(a, b, "fp32")
        plain.get_parameter(f"{names[half]}.weight").copy_(before[names[half]] + b @ a)
    torch.testing.assert_close(mlp(x), plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mlp(x), unchanged(x), atol=1e-3)
    with pytest.raises(ValueError, match="got one with an adapter"):
        mlp.state_dict()
    with pytest.raises(ValueError, match=r"a: expected \[rank, 80\], got \(2, 72\)"):
        mlp.gate_proj.update(torch.zeros(2, 72), torch.zeros(72, 2), "fp32")
    with pytest.raises(ValueError, match=r"b: expected \(72, 2\), got \(71, 2\)"):
        mlp.up_proj.update(torch.zeros(2, 80), torch.zeros(71, 2), "fp32")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mlp: pickle.loads(pickle.dumps(mlp))])
def test_a_copy_has_a_gate_of_its_own(copied):
    mlp, x = drawn()
    pack_layers(mlp, "fp32")
    wanted, other = mlp(x), copied(mlp)
    assert torch.equal(other(x), wanted)
    assert other.up_proj.packed is other.gate_proj.packed is not mlp.gate_proj.packed
    other.up_proj.update(torch.randn(2, 80), torch.randn(72, 2), "fp32")
    assert not torch.equal(other(x), wanted) and torch.equal(mlp(x), wanted)


def test_both_move_together():
    mlp, _ = drawn()
    pack_layers(mlp, "fp32")
    moved = mlp.to("meta")
    assert moved.gate_proj.packed is moved.up_proj.packed and moved.up_proj.packed.device.type == "meta"
