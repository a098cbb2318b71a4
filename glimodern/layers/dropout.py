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

    Returns x itself outside training and for p = 0. On the CPU, `ops.dropout` computes it in fp32, with a seed from
    PyTorch's generator, if the C++ kernel is available, for tensors in fp32, bf16 and fp16. All other tensors use
    `nn.functional.dropout`.
    """
    if not training or p == 0.0:
        return x
    computed = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    if (
        x.device.type != "cpu"
        or p >= 1.0
        or torch.compiler.is_compiling()
        or choose("dropout", "cpu", computed)[0] != "cpp"
    ):
        return nn.functional.dropout(x, p, training)
    return ops.dropout(x.to(computed), p, int(torch.randint(2**31, ()))).to(x.dtype)


class Dropout(nn.Dropout):
    """`nn.Dropout` by way of `dropout`. The option `inplace` is ignored."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape."""
        return dropout(input, self.p, self.training)
