"""Linear layers with weights packed for inference, which replace a model's `nn.Linear` modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import LowRank, PackedWeight, QuantisedWeight, backend_info, linear_packed
from glimodern.reference.linear_packed import GATED

from .quantised import quantised_weight, save_quantised

# Attributes of a linear layer: the largest |x| of each input, and a flag while they are recorded.
_INPUT_SIZES = "_largest_inputs"
_WATCHED = "_inputs_are_watched"


def can_pack() -> bool:
    """Whether packing pays off on this machine's CPU, which it does only with a vector kernel."""
    return backend_info("cpu")["linear_packed"]["isa"] not in ("", "scalar")


@contextmanager
def measured_inputs(model: nn.Module) -> Iterator[None]:
    """Record the input sizes of the model's linear layers inside this context (see `input_sizes`).

    A module that multiplies by a layer's weight without calling the layer must report its inputs by `watch_inputs`.
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
    """Report the inputs of a layer whose weight is multiplied without calling the layer.

    parts: tensors [..., columns], which concatenated on the last axis are the layer's input. Does nothing outside
    `measured_inputs`.
    """
    if inputs_are_watched(linear):
        _watch(linear, torch.cat(parts, -1))


def inputs_are_watched(linear: nn.Module) -> bool:
    """Whether `watch_inputs` of a layer has an effect."""
    return bool(vars(linear).get(_WATCHED, False))


def input_sizes(linear: nn.Module) -> Tensor | None:
    """Largest |x| of each input that `measured_inputs` recorded, fp32 [in_features]; None if there is none."""
    sizes: Tensor | None = vars(linear).get(_INPUT_SIZES)
    return sizes


class PackedLinear(nn.Module):
    """A linear layer for inference by `ops.linear_packed`, without parameters.

    dtype: of the packed weight: "int8", "bf16" or "fp32". activation: one of `ops.linear_packed`'s, applied to the
    result in the epilogue. sizes: fp32 [in_features], the largest |x| of each input, by which int8 scales its inputs;
    None: the layer's `input_sizes`. A layer that `hold_quantised` prepared is packed as it was stored.

    The state dict is the plain layer's, in dtype, or the stored form of `glimodern.checkpoint.quantised` in int8.

    low_rank: an update of the weight (`update`); None: none. With one there is no state dict.
    """

    low_rank: LowRank | None = None

    def __init__(
        self, linear: nn.Linear, dtype: str = "int8", activation: str = "none", sizes: Tensor | None = None
    ) -> None:
        super().__init__()
        gated = activation in GATED
        stored = quantised_weight(linear)
        if stored is None:
            sizes = input_sizes(linear) if sizes is None else sizes
            self.packed = PackedWeight.pack(linear.weight, linear.bias, dtype, sizes, gated=gated)
        else:
            self.packed = PackedWeight.of_quantised(stored, linear.bias, gated=gated)
        self.in_features, self.out_features = self.packed.inputs, self.packed.outputs
        self.activation = activation

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the plain layer's weight."""
        return (2 if self.packed.gated else 1) * self.out_features, self.in_features

    def update(self, a: Tensor, b: Tensor, dtype: str) -> None:
        """Add the product b a, [outputs, r] [r, inputs], to the weight, which stays packed as it is.

        dtype: of the packed a, "fp32" or "bf16". Raises ValueError for other shapes.
        """
        self.low_rank = LowRank.pack(self.packed, a, b, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Compute activation(x W^T + bias): [..., in_features] -> [..., out_features], in x's dtype.

        Raises ValueError if x requires gradients.
        """
        return linear_packed(x, self.packed, self.activation, low_rank=self.low_rank)

    def extra_repr(self) -> str:
        bias = self.packed.has_bias
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.packed.dtype}, "
            f"activation={self.activation}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        # .to(device) moves the weight. .to(dtype) leaves it as it is, because its storage is fixed by packing.
        device = fn(torch.empty(0, device=self.packed.device)).device
        self.packed = self.packed.to(device)
        if self.low_rank is not None:
            self.low_rank = LowRank(*(packed.to(device) for packed in self.low_rank))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.low_rank is not None:
            raise ValueError(
                f"{prefix.removesuffix('.') or 'weight'}: expected a weight to save, got one with an adapter; load the "
                "model with trainable=True, which merges it"
            )
        self._save_rows(destination, prefix, slice(None))

    def _save_rows(self, destination: dict[str, Any], prefix: str, rows: slice) -> None:
        """Save some rows of the weight and the bias as those of a layer."""
        if self.packed.dtype == "int8":
            weight, scale, input_scale = self.packed.quantised()
            save_quantised(destination, prefix, QuantisedWeight(weight[rows], scale[rows], input_scale))
        else:
            destination[prefix + "weight"] = self.packed.unpack()[rows]
        bias = self.packed.unpack_bias()
        if bias is not None:
            destination[prefix + "bias"] = bias[rows]


def packs(linear: nn.Module) -> bool:
    """Whether `pack_linears` packs this layer: it must be an `nn.Linear`, not a subclass."""
    return type(linear) is nn.Linear


def small_dtype(linear: nn.Linear, dtype: str) -> str:
    """The dtype to pack a layer in: in int8, a layer with fewer than 64 inputs or outputs is packed in fp32."""
    return "fp32" if dtype == "int8" and min(linear.weight.shape) < 64 else dtype


def packed_linear(linear: nn.Linear, dtype: str, activation: str = "none") -> PackedLinear:
    """Pack a layer in dtype, or in its `small_dtype`."""
    return PackedLinear(linear, small_dtype(linear, dtype), activation).train(linear.training)


def all_packed(layers: Iterable[Any]) -> bool:
    """Whether every layer is a `PackedLinear`, not a subclass."""
    return all(type(layer) is PackedLinear for layer in layers)


def pack_linears(module: nn.Module, dtype: str = "int8") -> int:
    """Replace every `nn.Linear` inside module by its `packed_linear`; returns the number of packed layers.

    Small layers are packed too: the order in which PyTorch's product sums a row depends on the number of rows, so one
    plain layer would make a text's scores depend on its batch. Subclasses of `nn.Linear` are not replaced. The plain
    weights are freed unless something else references them.
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
