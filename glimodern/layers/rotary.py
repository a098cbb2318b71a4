"""Angles of rotary position embeddings, by which `ops.rotary` rotates: https://arxiv.org/abs/2104.09864."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of position * base^(-2i / head_dim): positions int64 [n] -> two fp32 [n, head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[:, None] * (1.0 / base**exponents)[None, :]
    return angles.cos(), angles.sin()
