"""Linear layers in bf16 on CPUs, for training: rows padded to a few sizes.

oneDNN compiles a bf16 product anew for every new number of rows, and nearly every packed batch has another number of
tokens, words and types. Rounded up, the numbers recur, and oneDNN finds the compiled product in its cache
(https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html). The padding is written by the cast to bf16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_ROWS = 64  # numbers of rows are rounded up to a multiple; at most an eighth is added to larger ones


def padded_rows(rows: int) -> int:
    """Return the number of rows that a product of so many rows is computed with."""
    step = max(_ROWS, 1 << max(rows.bit_length() - 4, 0))
    return -(-rows // step) * step


def _padded(x: Tensor) -> Tensor:
    """Convert rows [n, k] to bf16 and pad them by zeros."""
    padded = x.new_empty(padded_rows(len(x)), x.shape[1], dtype=torch.bfloat16)
    padded[: len(x)].copy_(x)
    padded[len(x) :].zero_()
    return padded


class _PaddedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, low = _padded(x), weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, low)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        out = F.linear(rows, low, None if bias is None else bias.to(torch.bfloat16))
        return out[: len(x)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (rows, low), (x_dtype, weight_dtype, bias_dtype) = ctx.saved_tensors, ctx.dtypes
        wanted, padded = ctx.needs_input_grad, _padded(grad)
        x_grad = (padded @ low)[: len(grad)].to(x_dtype) if wanted[0] else None
        weight_grad = (padded.T @ rows).to(weight_dtype) if wanted[1] else None
        bias_grad = grad.sum(0, dtype=bias_dtype) if bias_dtype is not None and wanted[2] else None
        return x_grad, weight_grad, bias_grad


class PaddedLinears(TorchFunctionMode):
    """A context in which `F.linear` under autocast to bf16 on a CPU runs with padded rows, in bf16 as autocast runs it.

    Where gradients are off it runs as it is. Enter it for bf16 only: it sees every call of a torch function.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and _applies(*args, **(kwargs or {})):
            return _run(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _applies(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    on_cpu = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    low = on_cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return low and torch.is_grad_enabled() and input.numel() > 0 and input.is_floating_point()


def _run(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _PaddedLinear.apply(input.reshape(-1, input.shape[-1]), weight, bias)
    return out.reshape(*input.shape[:-1], len(weight))
