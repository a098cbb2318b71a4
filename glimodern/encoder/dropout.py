"""Dropout for training on CPUs.

`nn.functional.dropout` draws one Bernoulli number an element from one generator, 7 ns each (AMD Milan, two threads),
about 95 ms of a MiniLM step of 960 tokens, and keeps the mask. `ops.dropout` hashes the element's place, eight at a
time, on all threads, and makes the mask again for the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.ops.dispatch import choose

_LEVELS = 1 << 16


def _dropped_levels(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def keep_probability(p: float) -> float:
    """The share of elements that `random_keep` keeps: 1 - p, p < 1 rounded to a multiple of 1 / 65,536."""
    return 1.0 - _dropped_levels(p) / _LEVELS


def random_keep(like: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Shape, dtype and device of `like`: 1 with probability keep_probability(p), else 0, independent elements."""
    elements = like.numel()
    words = torch.empty((elements + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    keep = torch.empty(elements, dtype=like.dtype, device=like.device)
    torch.ge(words.view(torch.int16)[:elements], _dropped_levels(p) - _LEVELS // 2, out=keep)
    return keep.view(like.shape)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x with a share p of its elements zeroed and the rest scaled up; x itself outside training or for p = 0.

    fp32 on the CPU takes `ops.dropout` with a seed from PyTorch's generator where its C++ kernel is there, all else
    `nn.functional.dropout`.
    """
    if not training or p == 0.0:
        return x
    if (
        x.device.type != "cpu"
        or p >= 1.0
        or torch.compiler.is_compiling()
        or choose("dropout", "cpu", x.dtype)[0] != "cpp"
    ):
        return nn.functional.dropout(x, p, training)
    return ops.dropout(x, p, int(torch.randint(2**31, ())))


class Dropout(nn.Dropout):
    """`nn.Dropout` that calls `dropout`; `inplace` is not honoured."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        return dropout(input, self.p, self.training)
