"""The span head's layers packed for inference on CPUs, with the plain layers' state dicts."""

from collections.abc import Sequence
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

    @property
    def weight_shape(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a to W2, which is packed again: the fold reads the weight itself. dtype: not used."""
        self.packed = self.packed.plus((b @ a).T)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.packed.unpack().T.contiguous()
        destination[prefix + "bias"] = self.b2


class _Part(PackedLinear):
    """Part of W1's columns. `PackedHalves` and `PackedThirds` save all parts."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass


class _Product(_Part):
    """W1p of the token head, which `ops.token_scores` reads itself."""

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a to the weight, which is packed again. dtype: not used."""
        self.packed = self.packed.plus(b @ a)


def _parts(linear: nn.Linear, dtype: str, kinds: Sequence[type[_Part]]) -> list[_Part]:
    """Pack a layer's columns in equal parts of the given kinds, the first with the bias."""
    count = len(kinds)
    measured = input_sizes(linear)
    sizes = (None,) * count if measured is None else measured.chunk(count)
    scales = _scales_of_parts(linear, count)
    biases = (linear.bias, *(None,) * (count - 1))
    parts = []
    for number, (weight, bias) in enumerate(zip(linear.weight.chunk(count, dim=1), biases, strict=True)):
        part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        part.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            part.bias = bias
        for name, scale in scales[number].items():
            part.register_buffer(name, scale)
        parts.append(kinds[number](part, dtype, sizes=sizes[number]))
    return parts


def _scales_of_parts(linear: nn.Linear, count: int) -> list[dict[str, Tensor]]:
    """Return the scales of a layer's parts, by name; empty for a layer that holds floats."""
    stored = quantised_weight(linear)
    if stored is None:
        return [{} for _ in range(count)]
    if stored.scale.shape[1:] != (count,):
        raise ValueError(
            f"scale: expected fp32 {[len(stored.weight), count]}, got {stored.scale.dtype} {tuple(stored.scale.shape)}"
        )
    scales = [{SCALE: scale} for scale in stored.scale.unbind(1)]
    if stored.input_scale is not None:
        for part, input_scale in zip(scales, stored.input_scale.chunk(count), strict=True):
            part[INPUT_SCALE] = input_scale
    return scales


class PackedColumns(nn.Module):
    """A layer packed in parts of its columns, with the plain layer's state dict.

    In int8 each part has its own scale an output; the stored form's scales are [H, parts]. parts: in order, the first
    with the bias.
    """

    @property
    def parts(self) -> list[_Part]:
        return [part for part in self.children() if isinstance(part, _Part)]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        first = self.parts[0].packed
        if first.dtype == "int8":
            save_quantised(destination, prefix, self._quantised())
        else:
            destination[prefix + "weight"] = torch.cat([part.packed.unpack() for part in self.parts], dim=1)
        destination[prefix + "bias"] = first.unpack_bias()

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the plain layer's weight."""
        return self.parts[0].out_features, sum(part.in_features for part in self.parts)

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a, [H, r] [r, inputs], to the weight; see `PackedLinear.update`."""
        for part, columns in zip(self.parts, a.chunk(len(self.parts), dim=1), strict=True):
            part.update(columns.contiguous(), b, dtype)

    def _quantised(self) -> QuantisedWeight:
        weights, scales, input_scales = zip(*(part.packed.quantised() for part in self.parts), strict=True)
        input_scale = None if input_scales[0] is None else torch.cat(input_scales)
        return QuantisedWeight(torch.cat(weights, dim=1), torch.stack(scales, 1), input_scale)


class PackedHalves(PackedColumns):
    """W1 [H, 2d] of the span head, packed as two halves: W1s for starts and W1e for ends."""

    def __init__(self, linear: nn.Linear, dtype: str) -> None:
        super().__init__()
        self.start, self.end = _parts(linear, dtype, (_Part, _Part))

    def forward(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a = starts W1s^T + b1 and b = ends W1e^T, both [n, H], from starts and ends [n, d]."""
        return self.start(starts), self.end(ends)


class PackedThirds(PackedColumns):
    """W1 [H, 3d] of the token head, packed as three parts: for words, for types, and for their products."""

    def __init__(self, linear: nn.Linear, dtype: str) -> None:
        super().__init__()
        self.word, self.label, self.product = _parts(linear, dtype, (_Part, _Part, _Product))
