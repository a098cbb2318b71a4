"""The stored form of weights in int8: tensors beside `weight` in a state dict.

    P.weight        int8 [o, i]    of a linear layer P, as `ops.QuantisedWeight`, or of an embedding, [rows, width]
    P.weight_scale  fp32 [o]       [o, k] of a layer whose inputs are k equal parts with scales of their own
    P.input_scale   fp32 [i]       may be missing: inputs are not scaled

A quantised weight stands for weight * weight_scale[:, None] * input_scale. The form does not depend on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

SCALE, INPUT_SCALE = "weight_scale", "input_scale"
_PARTS = {"head.span.0": 2, "head.pair.0": 3}  # layers in parts, which multiply a concatenation
_AGAIN = "save or download the model again"


def quantised_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers that a state dict holds in int8."""
    return [name.removesuffix(".weight") for name, x in state.items() if x.dtype == torch.int8]


def check_quantised(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise ValueError, with the file, unless every weight in int8 has scales that fit it: positive numbers in fp32."""
    for name in quantised_layers(state):
        weight = state[f"{name}.weight"]
        if weight.ndim != 2:
            raise ValueError(
                f"{file}: tensor {name}.weight: expected a matrix in int8, got shape {tuple(weight.shape)}; {_AGAIN}"
            )
        rows, width = weight.shape
        shapes = {SCALE: (rows, _PARTS[name]) if name in _PARTS else (rows,), INPUT_SCALE: (width,)}
        for scale, shape in shapes.items():
            found = state.get(f"{name}.{scale}")
            if found is None:
                if scale == SCALE:
                    raise ValueError(f"{file}: tensor {name}.{scale}: expected fp32 {shape}, got none; {_AGAIN}")
            elif found.dtype != torch.float32 or found.shape != shape:
                raise ValueError(
                    f"{file}: tensor {name}.{scale}: expected fp32 {shape}, got {found.dtype} {tuple(found.shape)}; "
                    f"{_AGAIN}"
                )
            elif not bool(((found > 0.0) & found.isfinite()).all()):
                raise ValueError(f"{file}: tensor {name}.{scale}: expected positive numbers, got others; {_AGAIN}")


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
