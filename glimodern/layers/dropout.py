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
