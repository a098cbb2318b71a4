"""Small tensors between the host and a GPU, many in one copy.

A copy costs about 10 us of launch however small it is, one from pageable memory also waits for the copy itself, and a
batch has seven tensors. Here they travel in one pinned buffer. Lifetimes are PyTorch's: its pinned memory is given out
again only when the copies that read it are done (https://docs.pytorch.org/docs/stable/notes/cuda.html).
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
_ALIGNMENT = 64  # bytes: Triton compiles another kernel for pointers that are no multiple of 16


class Field(NamedTuple):
    """A tensor's place in a shared buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Layout:
    """Where tensors of these shapes and dtypes lie in one buffer of `nbytes` bytes."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        sizes = (-(-field.nbytes // _ALIGNMENT) * _ALIGNMENT for field in self.fields)
        self.starts = [0, *accumulate(sizes)]

    @property
    def nbytes(self) -> int:
        return self.starts[-1]

    def buffer(self, device: torch.device, pinned: bool = False) -> Tensor:
        """uint8 [nbytes], not initialised."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a buffer, none copied."""
        typed = {dtype: buffer.view(dtype) for dtype in {field.dtype for field in self.fields}}
        views = []
        for start, (shape, dtype) in zip(self.starts, self.fields, strict=False):
            flat = typed[dtype].narrow(0, start // dtype.itemsize, prod(shape))
            views.append(flat if len(shape) == 1 else flat.view(shape))
        return views

    def arrays(self, buffer: Tensor) -> list[npt.NDArray[Any]]:
        """The same of a buffer on the host, flat."""
        raw = buffer.numpy()
        return [
            raw[start : start + field.nbytes].view(_NUMPY[field.dtype])
            for start, field in zip(self.starts, self.fields, strict=False)
        ]


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors, int32 or int64, on device; from the host elsewhere by one copy, which nothing waits for (CUDA)."""
    if device.type == "cpu" or any(x.device.type != "cpu" for x in tensors):
        return [x.to(device) for x in tensors]
    layout = Layout([Field(tuple(x.shape), x.dtype) for x in tensors])
    staging = layout.buffer(torch.device("cpu"), pinned=device.type == "cuda")
    for array, x in zip(layout.arrays(staging), tensors, strict=True):
        array[:] = x.numpy().ravel()
    return layout.views(staging.to(device, non_blocking=True))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, all on one device, on the CPU; waits once for all (CUDA) and not at all for empty ones."""
    if tensors[0].device.type != "cuda" or not any(x.numel() for x in tensors):
        return [x.cpu() for x in tensors]
    copies = [x.to("cpu", non_blocking=True) for x in tensors]  # into pinned memory
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
