# mypy: allow-untyped-defs
"""Rotary positions: y = [x1 cos - x2 sin | x2 cos + x1 sin], with [x1 | x2] = x, one angle a token and pair.

x [n, groups, heads, 2h] of any strides (fp32, fp16 or bf16; the last is 1), cos, sin fp32 [n, h] -> y, contiguous;
computed in fp32. The backward pass is the same kernel with the opposite angles: nothing but cos and sin is kept.

Source: https://arxiv.org/abs/2104.09864.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """elements: pairs a program turns, a token's heads together, so that its cos and sin are loaded once for many.

    16 heads of 64 fill 4 warps with 4 pairs a thread. Not measured on a GPU.
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
    """Grid (n * groups, head tiles)."""
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
    """x [n, groups, heads, 2h] with unit last stride, cos and sin fp32 [n, h] -> y contiguous, not empty."""
    tokens, groups, heads, width = x.shape
    half = triton.next_power_of_2(width // 2)
    head_tile = min(triton.next_power_of_2(heads), max(1, CONFIG.elements // half))
    with torch.cuda.device_of(x):
        rotary_kernel[tokens * groups, triton.cdiv(heads, head_tile)](
            x, cos, sin, y, groups, heads, width // 2, *x.stride()[:3],
            INVERSE=inverse, HEADS=head_tile, HALF=half, num_warps=CONFIG.warps,
        )  # fmt: skip
