"""Rotary positions: x -> [x1 cos - x2 sin | x2 cos + x1 sin], with [x1 | x2] = x and one angle a pair.

Source: https://arxiv.org/abs/2104.09864, in the half-split form of public checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary_table(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin fp32 [n, head_dim / 2] of position * base^(-2i / head_dim), for positions int64 [n]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[:, None] * (1.0 / base**exponents)[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, ..., heads, head_dim], cos and sin fp32 [n, head_dim / 2] -> the shape and dtype of x; computes in fp32.

    The backward pass is the rotation by the opposite angle, so only cos and sin are kept.
    """
    shape = (len(x), *(1,) * (x.ndim - 2), cos.shape[-1])
    out: Tensor = _Rotation.apply(x, cos.view(shape), sin.view(shape))
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x1, x2 = wide[..., :half], wide[..., half:]
    out = torch.empty(x.shape, dtype=wide.dtype, device=x.device)
    torch.mul(x1, cos, out=out[..., :half]).addcmul_(x2, sin, value=-1.0)
    torch.mul(x2, cos, out=out[..., half:]).addcmul_(x1, sin)
    return out.to(x.dtype)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None
