"""The stored form of weights in int8: tensors beside `weight` in a state dict.

    P.weight        int8 [o, i]    of a linear layer P, as `ops.QuantisedWeight`, or of an embedding, [rows, width]
    P.weight_scale  fp32 [o]       [o, k] of a layer whose inputs are k equal parts with scales of their own
    P.input_scale   fp32 [i]       may be missing: inputs are not scaled

A quantised weight stands for weight * weight_scale[:, None] * input_scale. The form does not depend on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE, INPUT_SCALE = "weight_scale", "input_scale"


def quantised_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers that a state dict holds in int8."""
    return [name.removesuffix(".weight") for name, x in state.items() if x.dtype == torch.int8]


def is_scale(name: str) -> bool:
    """Return whether a tensor of this name is a scale of a weight in int8."""
    return name.rpartition(".")[2] in (SCALE, INPUT_SCALE)


def dequantise(state: dict[str, Tensor]) -> None:
    """Replace the weights in int8 of a state dict by fp32, and drop their scales."""
    for name in quantised_layers(state):
        weight, scale = state[f"{name}.weight"].float(), state.pop(f"{name}.{SCALE}")
        weight = (weight.unflatten(1, (scale[0].numel(), -1)) * scale.view(len(scale), -1, 1)).flatten(1)
        input_scale = state.pop(f"{name}.{INPUT_SCALE}", None)
        state[f"{name}.weight"] = weight if input_scale is None else weight * input_scale


def every_nth(state: Mapping[str, Tensor], name: str, step: int) -> Tensor:
    """Return every step-th value of a flattened tensor; of one in int8, the values that `dequantise` computes."""
    values = state[name].detach().flatten()[::step]
    if state[name].dtype != torch.int8:
        return values
    layer, width = name.removesuffix("weight"), state[name].shape[1]
    scale, input_scale = state[layer + SCALE], state.get(layer + INPUT_SCALE)
    index = torch.arange(0, state[name].numel(), step, device=values.device)
    row, column = index // width, index % width
    values = values.float() * scale.view(len(scale), -1)[row, column * scale[0].numel() // width]
    return values if input_scale is None else values * input_scale[column]
