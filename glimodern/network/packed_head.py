"""The span head's layers packed for inference on CPUs, with the plain layers' state dicts."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from glimodern.checkpoint.quantised import INPUT_SCALE, SCALE
from glimodern.layers.packed_linear import PackedLinear, input_sizes
from glimodern.layers.quantised import quantised_weight, save_quantised
from glimodern.ops import QuantisedWeight


def packed_mlp(mlp: nn.Module, dtype: str, activation: str) -> nn.Sequential:
    """Pack Linear - ReLU - Dropout - Linear, with `activation` in the second layer's epilogue.

    The names in the state dict stay the same.
    """
    first, second = cast(nn.Linear, mlp.get_submodule("0")), cast(nn.Linear, mlp.get_submodule("3"))
    hidden = PackedLinear(first, dtype, "relu")
    return nn.Sequential(hidden, nn.Identity(), nn.Identity(), PackedLinear(second, dtype, activation))


def packed_span(span: nn.Module, dtype: str, fold_dtype: str) -> nn.Sequential:
    """Pack the span FFN: the two halves of W1 in dtype, and W2 for the fold in fold_dtype.

    The names in the state dict stay the same.
    """
    first, second = cast(nn.Linear, span.get_submodule("0")), cast(nn.Linear, span.get_submodule("3"))
    return nn.Sequential(PackedHalves(first, dtype), nn.Identity(), nn.Identity(), PackedFold(second, fold_dtype))


class PackedFold(PackedLinear):
    """W2 [d, H], packed transposed, and b2 [d] of the span head. Computes x -> x W2, and so u from the type vectors q.

    W2 multiplies entity types only. In an int8 model it is therefore packed in fp32 or bf16.
    """

    b2: Tensor

    def __init__(self, linear: nn.Linear, dtype: str) -> None:
        transposed = nn.Linear(linear.out_features, linear.in_features, bias=False, device="meta")
        transposed.weight = nn.Parameter(linear.weight.detach().T, requires_grad=False)
        super().__init__(transposed, dtype)
        self.register_buffer("b2", linear.bias.detach(), persistent=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.packed.unpack().T.contiguous()
        destination[prefix + "bias"] = self.b2


class _Half(PackedLinear):
    """Half of W1's columns. `PackedHalves` saves both halves."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass


class PackedHalves(nn.Module):
    """W1 [H, 2d], packed as two halves: W1s for starts and W1e for ends.

    In int8 each half has its own scale an output; the stored form's scales are [H, 2].
    """

    def __init__(self, linear: nn.Linear, dtype: str) -> None:
        super().__init__()
        measured = input_sizes(linear)
        sizes = (None, None) if measured is None else measured.chunk(2)
        scales = _halves_of_scales(linear)
        halves = []
        for number, (weight, bias) in enumerate(zip(linear.weight.chunk(2, dim=1), (linear.bias, None), strict=True)):
            half = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            half.weight = nn.Parameter(weight.detach(), requires_grad=False)
            if bias is not None:
                half.bias = bias
            for name, scale in scales[number].items():
                half.register_buffer(name, scale)
            halves.append(_Half(half, dtype, sizes=sizes[number]))
        self.start, self.end = halves

    def forward(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a = starts W1s^T + b1 and b = ends W1e^T, both [n, H], from starts and ends [n, d]."""
        return self.start(starts), self.end(ends)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.start.packed.dtype == "int8":
            start, end = self.start.packed.quantised(), self.end.packed.quantised()
            input_scale = None
            if start.input_scale is not None and end.input_scale is not None:
                input_scale = torch.cat([start.input_scale, end.input_scale])
            scale = torch.stack([start.scale, end.scale], 1)
            whole = QuantisedWeight(torch.cat([start.weight, end.weight], dim=1), scale, input_scale)
            save_quantised(destination, prefix, whole)
        else:
            halves = [half.packed.unpack() for half in (self.start, self.end)]
            destination[prefix + "weight"] = torch.cat(halves, dim=1)
        destination[prefix + "bias"] = self.start.packed.unpack_bias()


def _halves_of_scales(linear: nn.Linear) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the scales of a layer's two halves, by name; empty for a layer that holds floats."""
    stored = quantised_weight(linear)
    if stored is None:
        return {}, {}
    scale = stored.scale if stored.scale.ndim == 2 else stored.scale[:, None].expand(-1, 2)
    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = {SCALE: scale[:, 0]}, {SCALE: scale[:, 1]}
    if stored.input_scale is not None:
        for half, input_scale in zip(halves, stored.input_scale.chunk(2), strict=True):
            half[INPUT_SCALE] = input_scale
    return halves
