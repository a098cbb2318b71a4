"""Dropout for fp32 training on CPUs: the mask costs 16 random bits an element.

`nn.functional.dropout` draws one Bernoulli number an element, 7 ns each on one core, which is a quarter of a small
encoder's training step. Here one draw of 64 bits serves four elements, so p is rounded to a multiple of 1 / 65,536
(0.1 becomes 0.100006) and what is kept is scaled by the rounded value, so the expectation is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16


def _dropped_levels(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def keep_probability(p: float) -> float:
    """The share of elements that `random_drop` keeps: 1 - p, p < 1 rounded to a multiple of 1 / 65,536."""
    return 1.0 - _dropped_levels(p) / _LEVELS


def random_drop(shape: torch.Size, p: float, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """bool tensor of `shape`, True (drop) with probability 1 - keep_probability(p), independent elements."""
    elements = shape.numel()
    words = torch.empty((elements + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return (words.view(torch.int16)[:elements] < _dropped_levels(p) - _LEVELS // 2).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        drop = random_drop(x.shape, p, x.device)
        ctx.save_for_backward(drop)
        ctx.scale = 1.0 / keep_probability(p)
        return (x * ctx.scale).masked_fill_(drop, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (drop,) = ctx.saved_tensors
        return (grad * ctx.scale).masked_fill_(drop, 0.0), None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x with a share p of its elements zeroed and the rest scaled up; x itself outside training or for p = 0.

    CPU tensors take the mask described above, all others `nn.functional.dropout`.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or p >= 1.0:
        return nn.functional.dropout(x, p, training)
    out: Tensor = _Dropout.apply(x, p)
    return out


class Dropout(nn.Dropout):
    """`nn.Dropout` that calls `dropout`; `inplace` is not honoured."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        return dropout(input, self.p, self.training)
