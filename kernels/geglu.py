# mypy: allow-untyped-defs
"""GeGLU: y = gelu(a) * b, with [a | b] = x; gelu(a) = a * Phi(a), the exact (erf) one, as ModernBERT's.

x [n, 2h] -> y [n, h]; fp32, fp16 or bf16; computed in fp32.
da = dy * b * (Phi(a) + a * phi(a));  db = dy * gelu(a). The backward pass reads x again; nothing else is saved.

Source: https://arxiv.org/abs/2002.05202.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Launch sizes, the same for every shape, as every element is read and written once; no GPU has timed them.

    columns: each thread of 4 warps loads 8 bf16 elements (16 bytes, the widest load).
    """

    columns: int = 1024
    warps: int = 4


CONFIG = Config()


@triton.jit
def normal_cdf(x):
    """Phi(x) in fp32."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def geglu_kernel(
    x_ptr,  # [n, 2 * width]
    y_ptr,  # [n, width]
    width,
    COLUMNS: tl.constexpr,
):
    """y of COLUMNS columns of a row. Grid (n, column tiles)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    a_ptr = x_ptr + row * 2 * width
    a = tl.load(a_ptr + column, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(a_ptr + width + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + column, a * normal_cdf(a) * b, mask=mask)


@triton.jit
def geglu_grad_kernel(
    dy_ptr,  # [n, width]
    x_ptr,  # [n, 2 * width]
    dx_ptr,  # [n, 2 * width]
    width,
    COLUMNS: tl.constexpr,
):
    """dx of COLUMNS columns of both halves of a row. Grid (n, column tiles)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    a_ptr = x_ptr + row * 2 * width
    da_ptr = dx_ptr + row * 2 * width
    dy = tl.load(dy_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + column, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(a_ptr + width + column, mask=mask, other=0.0).to(tl.float32)
    cdf = normal_cdf(a)
    density = 0.3989422804014327 * tl.exp(-0.5 * a * a)
    tl.store(da_ptr + column, dy * b * (cdf + a * density), mask=mask)
    tl.store(da_ptr + width + column, dy * a * cdf, mask=mask)


def geglu_forward(x: Tensor, y: Tensor) -> None:
    """Fill y [..., h] from x [..., 2h]; both contiguous and not empty."""
    width = y.shape[-1]
    with torch.cuda.device_of(x):
        geglu_kernel[y.numel() // width, triton.cdiv(width, CONFIG.columns)](
            x, y, width, COLUMNS=CONFIG.columns, num_warps=CONFIG.warps
        )


def geglu_backward(dy: Tensor, x: Tensor, dx: Tensor) -> None:
    """Fill dx [..., 2h] from dy [..., h] and x [..., 2h]; all contiguous and not empty."""
    width = dy.shape[-1]
    with torch.cuda.device_of(x):
        geglu_grad_kernel[dy.numel() // width, triton.cdiv(width, CONFIG.columns)](
            dy, x, dx, width, COLUMNS=CONFIG.columns, num_warps=CONFIG.warps
        )
