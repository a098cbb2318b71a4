# mypy: allow-untyped-defs
"""Residual addition and norm: sum = x + residual, normed = xhat * weight + bias, xhat = (sum - mean) * rstd.

RMS norm is the same with a mean of 0.

Inputs: x, residual [n, d] (fp32, fp16 or bf16), weight, bias fp32 [d]. Outputs: normed, sum [n, d] in the dtype of x,
mean, rstd fp32 [n]; computed in fp32, from the sum as rounded to its dtype.

Backward, with g = dnormed * weight:
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dsum          (= dresidual; no mean(g) in RMS norm)
    dweight = sum over rows of dnormed * xhat;  dbias = sum over rows of dnormed
Saved: the sum, rstd and, but for RMS norm, mean. Every program sums the gradients of weight and bias over its rows in
order, and the programs' sums are added in order, so two runs agree bit for bit.

Sources: https://arxiv.org/abs/1607.06450, https://arxiv.org/abs/1910.07467.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Launch sizes; no GPU has timed them.

    programs: of the backward pass, each with a share of the rows: four for each multiprocessor of an H100 hide the
        latency of a row's two passes, and the partial sums (two fp32 rows per program) stay small.
    """

    programs: int = 528

    def warps(self, columns: int) -> int:
        """About 8 elements per thread, so that a row stays in registers; columns: its width, a power of two."""
        return min(16, max(1, columns // 256))


CONFIG = Config()


@triton.jit
def add_layer_norm_kernel(
    x_ptr,  # [n, width]
    residual_ptr,  # [n, width] if RESIDUAL
    weight_ptr,  # fp32 [width]
    bias_ptr,  # fp32 [width] if BIAS
    normed_ptr,  # [n, width]
    sum_ptr,  # [n, width] if SUM
    mean_ptr,  # fp32 [n] if STATISTICS and not RMS
    rstd_ptr,  # fp32 [n] if STATISTICS
    width,
    eps,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    SUM: tl.constexpr,
    STATISTICS: tl.constexpr,
    RMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Norm one row. Grid (n,)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < width
    offset = row * width + column
    total = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)
    if SUM:
        tl.store(sum_ptr + offset, total, mask=mask)
    if RMS:
        centered = total
    else:
        mean = tl.sum(total) / width
        centered = tl.where(mask, total - mean, 0.0)
        if STATISTICS:
            tl.store(mean_ptr + row, mean)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered) / width + eps)
    normed = centered * rstd * tl.load(weight_ptr + column, mask=mask, other=0.0)
    if BIAS:
        normed += tl.load(bias_ptr + column, mask=mask, other=0.0)
    tl.store(normed_ptr + offset, normed, mask=mask)
    if STATISTICS:
        tl.store(rstd_ptr + row, rstd)


@triton.jit
def add_layer_norm_grad_kernel(
    grad_normed_ptr,  # [n, width]
    grad_sum_ptr,  # [n, width] if GRAD_SUM
    sum_ptr,  # [n, width]
    weight_ptr,  # fp32 [width]
    mean_ptr,  # fp32 [n] if not RMS
    rstd_ptr,  # fp32 [n]
    grad_x_ptr,  # [n, width] if GRAD_X
    grad_weight_ptr,  # fp32 [programs, width] if GRAD_WEIGHTS
    grad_bias_ptr,  # fp32 [programs, width] if GRAD_WEIGHTS
    rows,
    share,  # rows per program
    width,
    GRAD_SUM: tl.constexpr,
    GRAD_X: tl.constexpr,
    GRAD_WEIGHTS: tl.constexpr,
    RMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of rows [program * share, (program + 1) * share). Grid (programs,)."""
    first = tl.program_id(0).to(tl.int64) * share
    column = tl.arange(0, COLUMNS)
    mask = column < width
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
    grad_weight = tl.zeros((COLUMNS,), tl.float32)
    grad_bias = tl.zeros((COLUMNS,), tl.float32)
    for row in range(first, tl.minimum(first + share, rows)):
        offset = row * width + column
        grad = tl.load(grad_normed_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        total = tl.load(sum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        if RMS:
            xhat = total * rstd
        else:
            xhat = tl.where(mask, (total - tl.load(mean_ptr + row)) * rstd, 0.0)
        if GRAD_X:
            g = grad * weight
            inner = g - xhat * (tl.sum(g * xhat) / width)
            if not RMS:
                inner -= tl.sum(g) / width
            grad_x = rstd * inner
            if GRAD_SUM:
                grad_x += tl.load(grad_sum_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_x_ptr + offset, grad_x, mask=mask)
        if GRAD_WEIGHTS:
            grad_weight += grad * xhat
            grad_bias += grad
    if GRAD_WEIGHTS:
        offset = tl.program_id(0).to(tl.int64) * width + column
        tl.store(grad_weight_ptr + offset, grad_weight, mask=mask)
        tl.store(grad_bias_ptr + offset, grad_bias, mask=mask)


def add_layer_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    normed: Tensor,
    total: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    rms: bool,
) -> None:
    """Fill normed and, where given and not empty, total (the sum), mean and rstd; all contiguous, x not empty."""
    width = x.shape[-1]
    columns = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        add_layer_norm_kernel[(x.numel() // width,)](
            x, x if residual is None else residual, weight, weight if bias is None else bias, normed,
            normed if total is None else total, mean, rstd, width, eps,
            RESIDUAL=residual is not None, BIAS=bias is not None, SUM=total is not None, STATISTICS=rstd.numel() > 0,
            RMS=rms, COLUMNS=columns, num_warps=CONFIG.warps(columns),
        )  # fmt: skip


def add_layer_norm_backward(
    grad_normed: Tensor,
    grad_sum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    rms: bool,
) -> None:
    """Fill those of grad_x, grad_weight and grad_bias that are not empty; all contiguous, total not empty."""
    width = total.shape[-1]
    columns, rows = triton.next_power_of_2(width), total.numel() // width
    share = triton.cdiv(rows, CONFIG.programs)
    programs = triton.cdiv(rows, share)
    weights = grad_weight.numel() + grad_bias.numel() > 0
    partial = total.new_empty((2, programs if weights else 0, width), dtype=torch.float32)
    with torch.cuda.device_of(total):
        add_layer_norm_grad_kernel[(programs,)](
            grad_normed, grad_normed if grad_sum is None else grad_sum, total, weight, mean, rstd, grad_x, *partial,
            rows, share, width,
            GRAD_SUM=grad_sum is not None, GRAD_X=grad_x.numel() > 0, GRAD_WEIGHTS=weights, RMS=rms, COLUMNS=columns,
            num_warps=CONFIG.warps(columns),
        )  # fmt: skip
    for out, sums in zip((grad_weight, grad_bias), partial, strict=True):
        if out.numel():
            torch.sum(sums, 0, out=out)
