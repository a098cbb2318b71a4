"""Linear layers whose weights are packed for inference, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import PackedWeight, backend_info, linear_packed

_INPUT_SIZES = "_largest_inputs"  # attribute of a linear layer that was watched


def can_pack() -> bool:
    """Whether packing pays on this machine's CPU: not without a kernel of vector instructions."""
    return backend_info("cpu")["linear_packed"]["isa"] not in ("", "scalar")


@contextmanager
def measured_inputs(model: nn.Module) -> Iterator[None]:
    """While it lasts, what the model's linear layers are given is watched: fp32 [inputs], the largest |x| of each."""

    def watch(linear: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not arguments[0].numel():
            return
        sizes = arguments[0].detach().float().abs().flatten(0, -2).amax(0)
        before = getattr(linear, _INPUT_SIZES, None)
        setattr(linear, _INPUT_SIZES, sizes if before is None else torch.maximum(before, sizes))

    hooks = [module.register_forward_pre_hook(watch) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference by `linear_packed`; dtype "int8", "bf16" or "fp32".

    It has no parameters. Its state_dict is the plain layer's in the same dtype if that is `lossless` (not int8), and
    raises ValueError otherwise. activation: "none", "relu", "gelu" or "geglu", of the result.
    In int8, what `measured_inputs` saw of the layer's inputs is taken into account.
    """

    def __init__(self, linear: nn.Linear, dtype: str = "int8", activation: str = "none"):
        super().__init__()
        sizes = getattr(linear, _INPUT_SIZES, None)
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
        if not self.lossless:
            raise ValueError(
                f"{prefix.removesuffix('.') or 'this layer'} holds its weight in int8 and cannot be saved; load the"
                " model in fp32 to save it"
            )
        destination[prefix + "weight"] = self.packed.unpack()
        bias = self.packed.unpack_bias()
        if bias is not None:
            destination[prefix + "bias"] = bias


def packs(linear: nn.Linear, min_features: int = 64) -> bool:
    return type(linear) is nn.Linear and min(linear.weight.shape) >= min_features


def all_packed(layers: Iterable[Any]) -> bool:
    return all(type(layer) is PackedLinear for layer in layers)


def pack_linears(module: nn.Module, dtype: str = "int8", min_features: int = 64) -> int:
    """Put a `PackedLinear` in the place of every `nn.Linear` inside module; returns how many were packed.

    Layers with fewer than min_features inputs or outputs stay as they are, and so do subclasses of nn.Linear. The
    plain weights are freed unless something else holds them.
    """
    packed: dict[nn.Module, PackedLinear] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.Linear) or not packs(child, min_features):
                continue
            if child not in packed:
                packed[child] = PackedLinear(child, dtype).train(child.training)
            setattr(parent, name, packed[child])
    return len(packed)


# A linear layer and the activation that its module calls on its result, by transformers' names: BERT and its kin,
# DistilBERT, ALBERT, T5.
_ACTIVATED = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"), ("wi", "act"))


def pack_layers(module: nn.Module, dtype: str = "int8", min_features: int = 64) -> int:
    """`pack_linears` for layers of transformers, exact GELUs and ReLUs together with the linear layer before them."""
    fused = 0
    for parent in list(module.modules()):
        for linear_name, activation_name in _ACTIVATED:
            linear, activation = getattr(parent, linear_name, None), getattr(parent, activation_name, None)
            kind = {"GELUActivation": "gelu", "ReLU": "relu"}.get(type(activation).__name__)
            if kind is None or not isinstance(linear, nn.Linear) or not packs(linear, min_features):
                continue
            setattr(parent, linear_name, PackedLinear(linear, dtype, kind).train(linear.training))
            setattr(parent, activation_name, nn.Identity())
            fused += 1
    return fused + pack_linears(module, dtype, min_features)
