"""Layers that hold weights in int8, in the stored form of `glimodern.checkpoint.quantised`, until they are packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.checkpoint.quantised import INPUT_SCALE, SCALE, quantised_layers
from glimodern.ops import QuantisedWeight


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
        stored = state.get(f"{name}.{SCALE}")
        shape = (weight.shape[0], *(() if stored is None else stored.shape[1:]))
        layer.register_buffer(SCALE, torch.empty(shape, dtype=torch.float32, device="meta"))
        if f"{name}.{INPUT_SCALE}" in state:
            scale = torch.empty(weight.shape[1], dtype=torch.float32, device="meta")
            layer.register_buffer(INPUT_SCALE, scale)
