"""geglu: the GELU of the first half of every row, times its second half."""

from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from ._register import differentiable_op
from .dispatch import accumulator_dtype, backend, storage, triton_kernels


class GegluInputs(NamedTuple):
    """Arguments of the registered op."""

    x: Tensor


def _forward(inputs: GegluInputs) -> Tensor:
    (x,) = inputs
    chosen = backend("geglu", x)
    if chosen == "reference":
        with torch.no_grad():
            return reference.geglu(x.to(accumulator_dtype(x))).to(x.dtype)
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], width))
    if not y.numel():
        return y
    if chosen == "triton":
        triton_kernels("geglu").geglu_forward(x, y)
    else:
        rows, threads = y.numel() // width, torch.get_num_threads()
        dispatch.extension.geglu_forward(storage(x.dtype), x.data_ptr(), y.data_ptr(), rows, width, threads)
    return y


def _backward(grad: Tensor, inputs: GegluInputs) -> Tensor:
    (x,) = inputs
    chosen = backend("geglu", x)
    if chosen == "reference":
        a, b = x.to(accumulator_dtype(x)).chunk(2, dim=-1)
        dy = grad.to(a.dtype)
        cdf, density = 0.5 * torch.erfc(-(0.5**0.5) * a), torch.exp(-0.5 * a * a) * (2.0 * torch.pi) ** -0.5
        return torch.cat([dy * b * (cdf + a * density), dy * a * cdf], dim=-1).to(x.dtype)
    grad, x = grad.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    if not dx.numel():
        return dx
    if chosen == "triton":
        triton_kernels("geglu").geglu_backward(grad, x, dx)
    else:
        width = grad.shape[-1]
        addresses = (grad.data_ptr(), x.data_ptr(), dx.data_ptr())
        rows, threads = grad.numel() // width, torch.get_num_threads()
        dispatch.extension.geglu_backward(storage(x.dtype), *addresses, rows, width, threads)
    return dx


def _fake(inputs: GegluInputs) -> Tensor:
    x = inputs.x
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


_geglu = differentiable_op("geglu", _forward, _backward, _fake)


def geglu(x: Tensor) -> Tensor:
    """gelu(x[..., :h]) * x[..., h:], with the exact GELU, a * Phi(a).

    x: [..., 2h], fp32, fp16, bf16 or fp64. Returns [..., h] in its dtype, computed in fp32 (fp64 for fp64). The
    backward pass saves x alone: da = dy * b * (Phi(a) + a * phi(a)), db = dy * gelu(a), with [a | b] = x.

    Raises ValueError for an odd last dimension, TypeError for a dtype that is no float.

    Source: https://arxiv.org/abs/2002.05202.
    """
    check_tensors({"x": x})
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"x: expected [..., 2h], an even last dimension, got {tuple(x.shape)}")
    return _geglu(GegluInputs(x), x)
