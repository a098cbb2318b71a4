"""Linear layers whose weights are packed for inference, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import PackedWeight, backend_info, linear_packed

_INPUT_SIZES = "_largest_inputs"  # attributes of a linear layer: what was seen of its inputs,
_WATCHED = "_inputs_are_watched"  # and that they are watched now


def can_pack() -> bool:
    """Whether packing pays on this machine's CPU: not without a kernel of vector instructions."""
    return backend_info("cpu")["linear_packed"]["isa"] not in ("", "scalar")


@contextmanager
def measured_inputs(model: nn.Module) -> Iterator[None]:
    """While it lasts, what the model's linear layers are given is watched (`input_sizes`).

    A module that multiplies with a layer's weight without calling the layer says so by `watch_inputs`.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(lambda linear, inputs: _watch(linear, inputs[0])) for linear in linears]
    for linear in linears:
        setattr(linear, _WATCHED, True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for linear in linears:
            delattr(linear, _WATCHED)


def _watch(linear: nn.Module, x: Tensor) -> None:
    if not x.numel():
        return
    sizes = x.detach().float().abs().flatten(0, -2).amax(0)
    before = input_sizes(linear)
    setattr(linear, _INPUT_SIZES, sizes if before is None else torch.maximum(before, sizes))


def watch_inputs(linear: nn.Module, *parts: Tensor) -> None:
    """Let `measured_inputs` see the inputs of a layer whose weight is read: its columns' inputs [..., part], in order.

    Does nothing unless the layer is watched.
    """
    if vars(linear).get(_WATCHED, False):
        _watch(linear, torch.cat(parts, -1))


def input_sizes(linear: nn.Module) -> Tensor | None:
    """fp32 [inputs], the largest |x| of each that `measured_inputs` saw; None if it saw none."""
    sizes: Tensor | None = vars(linear).get(_INPUT_SIZES)
    return sizes


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference by `linear_packed`; dtype "int8", "bf16" or "fp32".

    It has no parameters. Its state_dict is the plain layer's in the same dtype if that is `lossless` (not int8), and
    raises ValueError otherwise. activation: "none", "relu", "gelu" or "geglu", of the result.
    In int8, the largest inputs are taken into account: sizes fp32 [in_features]; None: the layer's `input_sizes`.
    """

    def __init__(
        self, linear: nn.Linear, dtype: str = "int8", activation: str = "none", sizes: Tensor | None = None
    ) -> None:
        super().__init__()
        sizes = input_sizes(linear) if sizes is None else sizes
        self.packed = PackedWeight.pack(linear.weight, linear.bias, dtype, sizes, gated=activation == "geglu")
        self.in_features, self.out_features = self.packed.inputs, self.packed.outputs
        self.activation = activation

    @property
    def lossless(self) -> bool:
        """Whether the plain weight, in bf16 or fp32, can be had back exactly."""
        return self.packed.dtype != "int8"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype. Raises ValueError where x requires gradients."""
        return linear_packed(x, self.packed, self.activation)

    def extra_repr(self) -> str:
        bias = self.packed.has_bias
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.packed.dtype}, "
            f"activation={self.activation}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        # .to(device) moves the weight; .to(dtype), which asks for another storage, does not reach it
        self.packed = self.packed.to(fn(torch.empty(0, device=self.packed.device)).device)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        check_lossless(self, prefix)
        destination[prefix + "weight"] = self.packed.unpack()
        bias = self.packed.unpack_bias()
        if bias is not None:
            destination[prefix + "bias"] = bias


def check_lossless(layer: PackedLinear, prefix: str) -> None:
    """ValueError for a layer, named by its prefix in a state dict, whose plain weight is not kept."""
    if not layer.lossless:
        raise ValueError(
            f"{prefix.removesuffix('.') or 'this layer'} holds its weight in int8 and cannot be saved; load the model "
            "in fp32 to save it"
        )


def packs(linear: nn.Module) -> bool:
    """Whether `pack_linears` packs this layer: an nn.Linear, no subclass."""
    return type(linear) is nn.Linear


def packed_linear(linear: nn.Linear, dtype: str, activation: str = "none") -> PackedLinear:
    """The layer packed in dtype. A layer with under 64 inputs or outputs stays exact (fp32) where others are int8."""
    small = min(linear.weight.shape) < 64
    return PackedLinear(linear, "fp32" if small and dtype == "int8" else dtype, activation).train(linear.training)


def all_packed(layers: Iterable[Any]) -> bool:
    return all(type(layer) is PackedLinear for layer in layers)


def pack_linears(module: nn.Module, dtype: str = "int8") -> int:
    """Put a `packed_linear` in the place of every `nn.Linear` inside module; returns how many were packed.

    All of them, the small ones too: PyTorch's product sums a row in an order that depends on the number of rows, so one
    plain layer makes a text's scores depend on its batch. Subclasses of nn.Linear stay as they are. The
    plain weights are freed unless something else holds them.
    """
    packed: dict[nn.Module, PackedLinear] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.Linear) or not packs(child):
                continue
            if child not in packed:
                packed[child] = packed_linear(child, dtype)
            setattr(parent, name, packed[child])
    return len(packed)


# A linear layer and the activation that its module calls on its result, by transformers' names: BERT and its kin,
# DistilBERT, ALBERT, T5.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"), ("wi", "act"))


def pack_layers(module: nn.Module, dtype: str = "int8") -> int:
    """`pack_linears` for layers of transformers, exact GELUs and ReLUs together with the linear layer before them."""
    fused = 0
    for parent in list(module.modules()):
        for linear_name, activation_name in _ACTIVATED:
            linear, activation = getattr(parent, linear_name, None), getattr(parent, activation_name, None)
            kind = {"GELUActivation": "gelu", "ReLU": "relu"}.get(type(activation).__name__)
            if kind is None or not isinstance(linear, nn.Linear) or not packs(linear):
                continue
            setattr(parent, linear_name, packed_linear(linear, dtype, kind))
            setattr(parent, activation_name, nn.Identity())
            fused += 1
    return fused + pack_linears(module, dtype)
