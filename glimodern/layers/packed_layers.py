"""transformers' layers packed for inference, with activations and gates in the epilogues of their linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glimodern.checkpoint.quantised import INPUT_SCALE, SCALE
from glimodern.ops import LowRank

from .packed_linear import PackedLinear, input_sizes, pack_linears, packed_linear, packs, small_dtype
from .quantised import quantised_weight

# transformers' attribute names of a linear layer and of the activation applied to its result: BERT and related models,
# DistilBERT, ALBERT, T5.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"), ("wi", "act"))
# Those of two linear layers and of the activation of the first one's result, which multiplies the second's: EuroBERT
# and NomicBERT, gated T5.
_GATED = (("gate_proj", "up_proj", "act_fn"), ("wi_0", "wi_1", "act"))
_GELUS_BY_TANH = ("AccurateGELUActivation", "FastGELUActivation", "GELUTanh", "NewGELUActivation")
# Activations of `ops.linear_packed` by transformers' class names, for one layer and for a gate.
_EPILOGUES = {"GELUActivation": "gelu", "ReLU": "relu", **dict.fromkeys(_GELUS_BY_TANH, "gelu_tanh")}
_GATES = {
    "GELUActivation": "geglu", "SiLU": "swiglu", "SiLUActivation": "swiglu",
    **dict.fromkeys(_GELUS_BY_TANH, "geglu_tanh"),
}  # fmt: skip


class PackedGate(PackedLinear):
    """The first of two linear layers of one input, packed with the second as one gated weight.

    Computes act(x W0^T + b0) * (x W1^T + b1), by one of `ops.linear_packed`'s gated activations. The second layer's
    `PackedFactor` computes 1, so a model that multiplies both results is right. The state dict and `update` are those
    of the first layer alone.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, dtype: str, activation: str) -> None:
        measured = [sizes for sizes in (input_sizes(first), input_sizes(second)) if sizes is not None]
        sizes = torch.stack(measured).amax(0) if measured else None
        super().__init__(_joined(first, second), dtype, activation, sizes)
        self._updates: dict[int, tuple[Tensor, Tensor]] = {}  # of the first layer, of the second

    @property
    def weight_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a to the first layer's weight; see `PackedLinear.update`."""
        self.update_half(0, a, b, dtype)

    def update_half(self, half: int, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a to the weight of layer 0 or 1, in place of an earlier update of that layer."""
        if a.ndim != 2 or a.shape[1] != self.in_features:
            raise ValueError(f"a: expected [rank, {self.in_features}], got {tuple(a.shape)}")
        if b.shape != (self.out_features, len(a)):
            raise ValueError(f"b: expected {(self.out_features, len(a))}, got {tuple(b.shape)}")
        updates = {**self._updates, half: (a, b)}
        columns = []
        for number, (_, factor) in updates.items():
            zeros = torch.zeros_like(factor)
            columns.append(torch.cat((zeros, factor) if number else (factor, zeros)))
        down = torch.cat([factor for factor, _ in updates.values()])
        self.low_rank = LowRank.pack(self.packed, down, torch.cat(columns, dim=1), dtype)
        self._updates = updates

    def _save_rows(self, destination: dict[str, Any], prefix: str, rows: slice) -> None:
        super()._save_rows(destination, prefix, slice(0, self.out_features))


class PackedFactor(PackedLinear):
    """The second layer of a `PackedGate`, which computes its product too: a factor of 1, with its own state dict."""

    def __init__(self, gate: PackedGate) -> None:
        nn.Module.__init__(self)
        self._gate = (gate,)  # in a tuple: not a submodule
        self.packed, self.activation = gate.packed, gate.activation
        self.in_features, self.out_features = gate.in_features, gate.out_features

    @property
    def weight_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a to the second layer's weight; see `PackedLinear.update`."""
        self._gate[0].update_half(1, a, b, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return 1."""
        return x.new_ones(())

    def _apply(self, fn: Any, recurse: bool = True) -> PackedFactor:
        nn.Module._apply(self, fn, recurse)
        self.packed = self._gate[0].packed  # the gate, registered before, has moved
        return self

    def _save_rows(self, destination: dict[str, Any], prefix: str, rows: slice) -> None:
        super()._save_rows(destination, prefix, slice(self.out_features, None))


def _joined(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Build a layer with the rows of both, floats or as they were stored in int8."""
    bias = first.bias is not None
    joined = nn.Linear(first.in_features, first.out_features + second.out_features, bias=bias, device="meta")
    joined.weight = nn.Parameter(torch.cat((first.weight.detach(), second.weight.detach())), requires_grad=False)
    if bias:
        joined.bias = nn.Parameter(torch.cat((first.bias.detach(), second.bias.detach())), requires_grad=False)
    stored = [quantised_weight(linear) for linear in (first, second)]
    if stored[0] is not None and stored[1] is not None:
        joined.register_buffer(SCALE, torch.cat((stored[0].scale, stored[1].scale)))
        if stored[0].input_scale is not None:
            joined.register_buffer(INPUT_SCALE, stored[0].input_scale)
    return joined


def _joins(first: nn.Linear, second: nn.Linear) -> bool:
    """Whether two layers can be one weight. Two stored in int8 must multiply their inputs by the same factors."""
    if not packs(first) or not packs(second):
        return False
    if first.weight.shape != second.weight.shape or (first.bias is None) != (second.bias is None):
        return False
    one, two = quantised_weight(first), quantised_weight(second)
    if one is None or two is None:
        return one is two
    if one.input_scale is None or two.input_scale is None:
        return one.input_scale is two.input_scale
    return torch.equal(one.input_scale, two.input_scale)


def pack_layers(module: nn.Module, dtype: str = "int8") -> int:
    """`pack_linears` for transformers' layers, with activations and gates that `ops.linear_packed` knows fused.

    An activation becomes part of the linear layer before it. Two layers whose products are multiplied become a
    `PackedGate` and its `PackedFactor`.
    """
    fused = 0
    for parent in list(module.modules()):
        for first_name, second_name, activation_name in _GATED:
            first, second = getattr(parent, first_name, None), getattr(parent, second_name, None)
            activation = _GATES.get(type(getattr(parent, activation_name, None)).__name__)
            if activation is None or not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
                continue
            if not _joins(first, second):
                continue
            gate = PackedGate(first, second, small_dtype(first, dtype), activation).train(first.training)
            setattr(parent, first_name, gate)
            setattr(parent, second_name, PackedFactor(gate).train(first.training))
            setattr(parent, activation_name, nn.Identity())
            fused += 2
        for linear_name, activation_name in _ACTIVATED:
            linear = getattr(parent, linear_name, None)
            activation = _EPILOGUES.get(type(getattr(parent, activation_name, None)).__name__)
            if activation is None or not isinstance(linear, nn.Linear) or not packs(linear):
                continue
            setattr(parent, linear_name, packed_linear(linear, dtype, activation))
            setattr(parent, activation_name, nn.Identity())
            fused += 1
    return fused + pack_linears(module, dtype)
