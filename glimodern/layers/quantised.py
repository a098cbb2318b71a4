"""The stored form of layers in int8: tensors beside `weight`, and layers that hold them until they are packed.

    P.weight        int8 [o, i]    of a linear layer P, as `ops.QuantisedWeight`, or of an embedding, [rows, width]
    P.weight_scale  fp32 [o]       [o, 2] of a layer whose inputs are two halves with scales of their own
    P.input_scale   fp32 [i]       may be missing: inputs are not scaled

A quantised linear layer stands for weight * weight_scale[:, None] * input_scale. The form does not depend on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import QuantisedWeight

SCALE, INPUT_SCALE = "weight_scale", "input_scale"


def save_quantised(destination: dict[str, Any], prefix: str, quantised: QuantisedWeight) -> None:
    """Put a weight into a state dict. prefix: the layer's, with its dot."""
    destination[prefix + "weight"] = quantised.weight
    destination[prefix + SCALE] = quantised.scale
    if quantised.input_scale is not None:
        destination[prefix + INPUT_SCALE] = quantised.input_scale


def quantised_weight(layer: nn.Module) -> QuantisedWeight | None:
    """Return the weight in int8 that a layer holds, in the form of `save_quantised`; None if it holds floats."""
    weight = layer.get_parameter("weight").detach()
    if weight.dtype != torch.int8:
        return None
    return QuantisedWeight(weight, layer.get_buffer(SCALE), layer._buffers.get(INPUT_SCALE))


def quantised_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers that a state dict holds in int8."""
    return [name.removesuffix(".weight") for name, x in state.items() if x.dtype == torch.int8]


def hold_quantised(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Prepare a module's linear layers and embeddings to take weights in int8, those that `state` holds so.

    The shapes are the module's, on the meta device; whether the state fits them is not checked. A name that is not such
    a layer's is left alone.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    held: dict[Tensor, nn.Parameter] = {}  # tied weights stay tied
    for name in quantised_layers(state):
        layer = layers.get(name)
        if not isinstance(layer, (nn.Linear, nn.Embedding)) or layer.weight.dtype == torch.int8:
            continue
        weight = layer.weight
        if weight not in held:
            held[weight] = nn.Parameter(torch.empty_like(weight, dtype=torch.int8, device="meta"), requires_grad=False)
        layer.weight = held[weight]
        halves = state[f"{name}.{SCALE}"].ndim == 2 if f"{name}.{SCALE}" in state else False
        rows = weight.shape[0]
        layer.register_buffer(SCALE, torch.empty((rows, 2) if halves else (rows,), dtype=torch.float32, device="meta"))
        if f"{name}.{INPUT_SCALE}" in state:
            scale = torch.empty(weight.shape[1], dtype=torch.float32, device="meta")
            layer.register_buffer(INPUT_SCALE, scale)


def dequantise(state: dict[str, Tensor]) -> None:
    """Replace the weights in int8 of a state dict by fp32, and drop their scales."""
    for name in quantised_layers(state):
        weight, scale = state[f"{name}.weight"].float(), state.pop(f"{name}.{SCALE}")
        weight = (weight.unflatten(1, (scale[0].numel(), -1)) * scale.view(len(scale), -1, 1)).flatten(1)
        input_scale = state.pop(f"{name}.{INPUT_SCALE}", None)
        state[f"{name}.weight"] = weight if input_scale is None else weight * input_scale
