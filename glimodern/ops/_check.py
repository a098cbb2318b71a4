"""Checks of arguments that operators share; none reads a tensor's values, `text_offsets` excepted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .dispatch import FLOATS


def check_tensors(floats: Mapping[str, Tensor], integers: Mapping[str, Tensor] | None = None) -> None:
    """Check named tensors: floats of a float dtype, integers int32 or int64, all on the device of the first."""
    integers = integers or {}
    first_name, first = next(iter(floats.items()))
    for name, x in (*floats.items(), *integers.items()):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.device != first.device:
            raise ValueError(
                f"{name}: expected device {first.device}, that of {first_name}, got {x.device}; "
                f"move it with .to({first_name}.device)"
            )
    for name, x in floats.items():
        if x.dtype not in FLOATS:
            raise TypeError(f"{name}: expected fp32, fp16, bf16 or fp64, got {x.dtype}; convert it with .float()")
    for name, x in integers.items():
        if x.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected int32 or int64, got {x.dtype}; convert it with .to(torch.int32)")


def check_offsets_shape(name: str, cu: Tensor) -> None:
    """Check that cu is a vector of at least one offset."""
    if cu.ndim != 1 or cu.shape[0] < 1:
        raise ValueError(f"{name}: expected [texts + 1], got {tuple(cu.shape)}")


def check_max_width(max_width: int) -> None:
    if max_width < 1:
        raise ValueError(f"max_width: expected at least 1, got {max_width}")


def check_dropout(dropout_p: float) -> None:
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: expected a number in [0, 1), got {dropout_p}")


def text_offsets(name: str, cu: Tensor | Sequence[int], rows: int) -> list[int]:
    """Return cu [texts + 1] as a list; ValueError unless it rises from 0 to `rows`.

    Reads a tensor, which waits for its device.
    """
    offsets: list[int] = cu.tolist() if isinstance(cu, Tensor) else list(cu)
    if offsets[0] != 0 or offsets[-1] != rows or offsets != sorted(offsets):
        shown = offsets if len(offsets) <= 8 else [*offsets[:4], "...", *offsets[-3:]]
        raise ValueError(
            f"{name}: expected offsets that rise from 0 to {rows} (cumulative lengths, texts + 1 of them), got {shown}"
        )
    return offsets
