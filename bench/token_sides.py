"""Common parts of the elementwise operators' benches: 4,500 tokens of ModernBERT-base, in bf16 and fp32."""

import torch
from measure import DEVICE
from sides import BACKWARD, BOTH, FORWARD, Wanted
from torch import Tensor

TOKENS, WIDTH, FFN, HEADS, HEAD_DIM = 4500, 768, 1152, 12, 64
DTYPES = (torch.bfloat16, torch.float32)
COMPILED = {torch.bfloat16: None, torch.float32: "measured in bf16 only, because compilation takes long"}
# Goals in bf16; the gradient alone has none.
WANTED = {FORWARD: [Wanted("time", "eager", 2.0)], BACKWARD: [], BOTH: [Wanted("time", "eager", 2.0)]}


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def wanted(dtype: torch.dtype, direction: str) -> list[Wanted]:
    return WANTED[direction] if dtype == torch.bfloat16 else []
