# mypy: allow-untyped-defs
"""Rotary positions: y = [x1 cos - x2 sin | x2 cos + x1 sin], with [x1 | x2] = x, one angle per token and pair.

Inputs: x [n, groups, heads, 2h] (fp32, fp16 or bf16) with unit last stride and any others, cos, sin fp32 [n, h].
Output: y, contiguous; computed in fp32. The backward pass is the same kernel with the opposite angles: only cos and sin
are saved.

Source: https://arxiv.org/abs/2104.09864.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Launch sizes; no GPU has timed them.

    elements: pairs that a program rotates, of several heads of one token, so that cos and sin are loaded once for all.
        16 heads of 64 fill 4 warps with 4 pairs per thread.
    """

    elements: int = 512
    warps: int = 4


CONFIG = Config()


@triton.jit
def rotary_kernel(
    x_ptr,  # [n, groups, heads, 2 * half], strided
    cos_ptr,  # fp32 [n, half]
    sin_ptr,  # fp32 [n, half]
    y_ptr,  # [n, groups, heads, 2 * half]
    groups,
    heads,
    half,
    token_stride,
    group_stride,
    head_stride,
    INVERSE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Rotate HEADS heads of one token and group. Grid (n * groups, head tiles)."""
    token = (tl.program_id(0) // groups).to(tl.int64)
    group = (tl.program_id(0) % groups).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    pair = tl.arange(0, HALF)
    c = tl.load(cos_ptr + token * half + pair, mask=pair < half, other=0.0)[None, :]
    s = tl.load(sin_ptr + token * half + pair, mask=pair < half, other=0.0)[None, :]
    if INVERSE:
        s = -s
    mask = (head < heads)[:, None] & (pair < half)[None, :]
    x_tile = x_ptr + token * token_stride + group * group_stride + (head * head_stride)[:, None] + pair[None, :]
    x1 = tl.load(x_tile, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x_tile + half, mask=mask, other=0.0).to(tl.float32)
    y_tile = y_ptr + (((token * groups + group) * heads + head) * 2 * half)[:, None] + pair[None, :]
    tl.store(y_tile, x1 * c - x2 * s, mask=mask)
    tl.store(y_tile + half, x2 * c + x1 * s, mask=mask)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor, inverse: bool) -> None:
    """Fill y, contiguous and not empty, from x [n, groups, heads, 2h] with unit last stride, cos, sin fp32 [n, h]."""
    tokens, groups, heads, width = x.shape
    half = triton.next_power_of_2(width // 2)
    head_tile = min(triton.next_power_of_2(heads), max(1, CONFIG.elements // half))
    with torch.cuda.device_of(x):
        rotary_kernel[tokens * groups, triton.cdiv(heads, head_tile)](
            x, cos, sin, y, groups, heads, width // 2, *x.stride()[:3],
            INVERSE=inverse, HEADS=head_tile, HALF=half, num_warps=CONFIG.warps,
        )  # fmt: skip
