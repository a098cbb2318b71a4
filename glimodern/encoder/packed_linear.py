"""Linear layers whose weights are packed for inference, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import PackedWeight, linear_packed

from .linear import Linear


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference by `linear_packed`; dtype "int8", "bf16" or "fp32".

    It has no parameters. Its state_dict is the plain layer's in the same dtype if that is `lossless` (not int8), and
    raises ValueError otherwise. activation: "none", "relu" or "gelu", of the result.
    """

    def __init__(self, linear: nn.Linear, dtype: str = "int8", activation: str = "none"):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = PackedWeight.pack(linear.weight, linear.bias, dtype)
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


def pack_linears(module: nn.Module, dtype: str = "int8", min_features: int = 64) -> int:
    """Put a `PackedLinear` in the place of every `nn.Linear` inside module; returns how many were packed.

    Layers with fewer than min_features inputs or outputs stay as they are, and so do subclasses of nn.Linear but our
    own. The plain weights are freed unless something else holds them.
    """
    packed: dict[nn.Module, PackedLinear] = {}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) not in (nn.Linear, Linear) or min(child.weight.shape) < min_features:  # type: ignore[arg-type]
                continue
            if child not in packed:
                packed[child] = PackedLinear(child, dtype).train(child.training)  # type: ignore[arg-type]
            setattr(parent, name, packed[child])
    return len(packed)
