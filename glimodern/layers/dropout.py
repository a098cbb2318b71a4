"""Dropout for training on CPUs.

`nn.functional.dropout` draws one Bernoulli number per element from one generator and stores the mask. That takes 7 ns
per element (AMD Milan, two threads), about 95 ms of a MiniLM step of 960 tokens. `ops.dropout` hashes the element's
index, eight elements at a time, on all threads, and recomputes the mask in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.ops.dispatch import choose


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero elements of x with probability p and scale the rest by 1 / (1 - p).

    Returns x itself outside training and for p = 0. An fp32 tensor on the CPU uses `ops.dropout`, with a seed from
    PyTorch's generator, if the C++ kernel is available. All other tensors use `nn.functional.dropout`.
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
    """`nn.Dropout` by way of `dropout`. The option `inplace` is ignored."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape."""
        return dropout(input, self.p, self.training)
