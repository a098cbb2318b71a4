"""dropout: a counter-based mask that the backward pass computes again."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glimodern import reference

from . import dispatch


def _apply(x: Tensor, p: float, seed: int) -> Tensor:
    columns = x.shape[-1] if x.ndim else 1
    if dispatch.backend("dropout", x) == "cpp":
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = x.numel() // max(columns, 1)
        threads = torch.get_num_threads()
        dispatch.extension.dropout_rows(x.data_ptr(), y.data_ptr(), rows, columns, p, seed & 0xFFFFFFFF, threads)
        return y
    return reference.dropout(x, p, seed)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.options = (p, seed)
        return _apply(x, p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _apply(grad, *ctx.options), None, None


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """Zero a share p of the elements of x and multiply the others by 1 / (1 - p); differentiable once.

    x: [..., h], any float dtype. The mask is reference.dropout_keep over the rows of x, a function of seed and position
    alone. fp32 on the CPU has a kernel; all else runs in plain PyTorch. Nothing is saved for the backward pass.

    Raises ValueError for p outside [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p: expected a number in [0, 1), got {p}")
    out: Tensor = _Dropout.apply(x, float(p), int(seed))
    return out
