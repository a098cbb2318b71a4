"""Transfer of many small tensors between host and GPU in one copy.

A copy costs about 10 us to launch, however small it is; a copy from pageable memory also blocks until it is done. A
batch has seven tensors. Here they share one pinned buffer and one copy. PyTorch manages the lifetimes: it reuses pinned
memory only after the copies that read it are done (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NUMPY = {torch.int32: np.int32, torch.int64: np.int64}
_ALIGNMENT = 64  # bytes; Triton compiles another kernel for pointers that are not a multiple of 16


class Field(NamedTuple):
    """Shape and dtype of a tensor in a shared buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Layout:
    """Aligned offsets of tensors with these shapes and dtypes in one buffer of `nbytes` bytes."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        sizes = (-(-field.nbytes // _ALIGNMENT) * _ALIGNMENT for field in self.fields)
        self.starts = [0, *accumulate(sizes)]

    @property
    def nbytes(self) -> int:
        return self.starts[-1]

    def buffer(self, device: torch.device, pinned: bool = False) -> Tensor:
        """Allocate an uninitialised buffer, uint8 [nbytes]."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the tensors in a buffer as views, with their shapes."""
        typed = {dtype: buffer.view(dtype) for dtype in {field.dtype for field in self.fields}}
        views = []
        for start, (shape, dtype) in zip(self.starts, self.fields, strict=False):
            flat = typed[dtype].narrow(0, start // dtype.itemsize, prod(shape))
            views.append(flat if len(shape) == 1 else flat.view(shape))
        return views

    def arrays(self, buffer: Tensor) -> list[npt.NDArray[Any]]:
        """Return the tensors in a host buffer as flat NumPy views."""
        raw = buffer.numpy()
        return [
            raw[start : start + field.nbytes].view(_NUMPY[field.dtype])
            for start, field in zip(self.starts, self.fields, strict=False)
        ]


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move int32 or int64 tensors to a device; from the host to CUDA by one asynchronous copy."""
    if device.type == "cpu" or any(x.device.type != "cpu" for x in tensors):
        return [x.to(device) for x in tensors]
    layout = Layout([Field(tuple(x.shape), x.dtype) for x in tensors])
    staging = layout.buffer(torch.device("cpu"), pinned=device.type == "cuda")
    for array, x in zip(layout.arrays(staging), tensors, strict=True):
        array[:] = x.numpy().ravel()
    return layout.views(staging.to(device, non_blocking=True))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Move tensors of one device to the CPU; on CUDA with one synchronisation, and with none if all are empty."""
    if tensors[0].device.type != "cuda" or not any(x.numel() for x in tensors):
        return [x.cpu() for x in tensors]
    copies = [x.to("cpu", non_blocking=True) for x in tensors]  # into pinned memory
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
