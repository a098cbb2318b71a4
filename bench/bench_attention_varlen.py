"""attention_varlen: ours against PyTorch's scaled_dot_product_attention (SDPA), text by text and padded.

All sides read q, k and v as slices of one fused projection. The truth is the operator's plain PyTorch form in fp64,
computed tile by tile, which tests/test_attention_varlen.py compares with the oracle. The oracle itself would need a
matrix of 8,192 x 8,192 per head.
"""

from dataclasses import dataclass

import pytest
import torch
from measure import DEVICE, DTYPE_NAMES
from roofline import Attention
from sides import BACKWARD, BOTH, FORWARD, Function, Problem, Wanted, costs
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from glimodern import ops


@dataclass(frozen=True)
class Size:
    lengths: tuple[int, ...]
    dtype: torch.dtype
    window: int | None = None
    heads: int = 12
    head_dim: int = 64

    def __str__(self) -> str:
        texts = "1 text" if len(self.lengths) == 1 else f"{len(self.lengths)} texts"
        window = "no window" if self.window is None else f"window {2 * self.window}"
        return f"{texts}, {sum(self.lengths):,} tokens, {window}, {self.heads} heads of {self.head_dim}"


SHORT = tuple(40 + round(80 * (37 * n % 64 / 63) ** 1.652) for n in range(64))  # 40 to 120 tokens, 4,500 in all
LONG = Size((8192,), torch.float32, window=64)


def by_text(size: Size) -> Function:
    """SDPA with one call per text. A window is a mask [L, L]."""
    place = torch.arange(max(size.lengths), device=DEVICE)
    band = None if size.window is None else (place[:, None] - place).abs() <= size.window

    def attend(qkv: Tensor) -> Tensor:
        texts = zip(*(x.transpose(0, 1).split(size.lengths, 1) for x in qkv.unbind(1)), strict=True)
        return torch.cat([sdpa(*(x[None] for x in text), band)[0] for text in texts], 1).transpose(0, 1)

    return attend


def padded(size: Size) -> Function | str:
    """SDPA on texts padded to the longest one, with a mask. The time includes padding and its removal."""
    if len(size.lengths) == 1:
        return "one text: nothing to pad"
    lengths = torch.tensor(size.lengths, device=DEVICE)
    inside = torch.arange(int(lengths.max()), device=DEVICE) < lengths[:, None]

    def attend(qkv: Tensor) -> Tensor:
        wide = qkv.new_zeros(*inside.shape, 3, size.heads, size.head_dim)
        wide[inside] = qkv
        q, k, v = wide.permute(2, 0, 3, 1, 4)
        return sdpa(q, k, v, inside[:, None, None, :]).transpose(1, 2)[inside]

    return attend


def problem(size: Size) -> Problem:
    cu_seqlens = torch.tensor([0, *size.lengths], device=DEVICE).cumsum(0).to(torch.int32)
    shape = (sum(size.lengths), 3, size.heads, size.head_dim)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, size.dtype)

    def ours(qkv: Tensor) -> Tensor:
        return ops.attention_varlen(*qkv.unbind(1), cu_seqlens, max(size.lengths), window=size.window)

    def oracle(qkv: Tensor) -> Tensor:
        with ops.use_backend("reference"):
            return ours(qkv)

    return Problem(
        "attention_varlen",
        str(size),
        (qkv,),
        ours,
        by_text(size),
        costs("attention_varlen", Attention(size.lengths, size.heads, size.head_dim, size.window, size.dtype.itemsize)),
        {"SDPA padded": padded(size)},
        "SDPA is one kernel per text already",
        oracle=oracle,
    )


def bench_long_text(compare):
    compare(problem(LONG), FORWARD, [Wanted("time", "eager", 30.0)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=DTYPE_NAMES.get)
def bench_short_texts(compare, dtype):
    goals = [Wanted("time", "eager", 4.0), Wanted("time", "SDPA padded", 4.0)] if dtype == torch.bfloat16 else []
    compare(problem(Size(SHORT, dtype)), FORWARD, goals)


@pytest.mark.parametrize("direction", [BACKWARD, BOTH])
def bench_short_texts_gradient(compare, direction):
    compare(problem(Size(SHORT, torch.float32)), direction)
