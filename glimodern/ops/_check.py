"""The checks of arguments that all operators share: what can be known without reading the tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .dispatch import FLOATS


def check_tensors(op: str, floats: Mapping[str, Tensor], integers: Mapping[str, Tensor] | None = None) -> None:
    """Tensors by name: of a float dtype, int32 (or int64), and all on the device of the first."""
    integers = integers or {}
    first_name, first = next(iter(floats.items()))
    for name, x in (*floats.items(), *integers.items()):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
        if x.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {x.device}, {first_name} on {first.device}; move it with .to({first_name}.device)"
            )
    for name, x in floats.items():
        if x.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be fp32, fp16, bf16 or fp64, got {x.dtype}; convert it")
    for name, x in integers.items():
        if x.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} must be int32, got {x.dtype}; use .to(torch.int32)")


def check_offsets(op: str, name: str, cu: Tensor) -> None:
    if cu.ndim != 1 or cu.shape[0] < 1:
        raise ValueError(f"{op}: {name} must be [texts + 1], got {tuple(cu.shape)}")


def check_dropout(op: str, dropout_p: float) -> None:
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p must be in [0, 1), got {dropout_p}")
