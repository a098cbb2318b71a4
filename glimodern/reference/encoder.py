"""Oracles of the encoder's elementwise operators: geglu, rotary, add_layer_norm, add_rms_norm."""

import torch
from torch import Tensor


def geglu(x: Tensor) -> Tensor:
    """gelu(x[..., :h]) * x[..., h:] with the exact (erf) GELU: x [..., 2h] -> [..., h]."""
    a, b = x.chunk(2, dim=-1)
    return torch.nn.functional.gelu(a) * b


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[x1 cos - x2 sin | x2 cos + x1 sin] with [x1 | x2] = x: x [n, ..., heads, 2h], cos and sin [n, h].

    Returns the shape and dtype of x; products are in the wider of the dtypes of x and cos.
    """
    shape = (x.shape[0], *(1,) * (x.ndim - 2), cos.shape[-1])
    c, s = cos.view(shape), sin.view(shape)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], dim=-1).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, sum): sum = x + residual, normed = (sum - mean) / sqrt(variance + eps) * weight + bias by row."""
    total = x if residual is None else x + residual
    return torch.nn.functional.layer_norm(total, tuple(weight.shape), weight, bias, eps), total


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, sum): sum = x + residual, normed = sum / sqrt(mean(sum^2) + eps) * weight by row."""
    total = x if residual is None else x + residual
    return total * (total.square().mean(-1, keepdim=True) + eps).rsqrt() * weight, total
