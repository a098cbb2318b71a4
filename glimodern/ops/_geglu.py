"""geglu: GELU of the first half of every row times its second half."""

from typing import Any

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from .dispatch import backend, direct, needs_grad, storage, triton_kernels, wide_dtype


def _forward_impl(x: Tensor) -> Tensor:
    chosen = backend("geglu", x)
    if chosen == "reference":
        with torch.no_grad():
            return reference.geglu(x.to(wide_dtype(x))).to(x.dtype)
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


def _backward_impl(grad: Tensor, x: Tensor) -> Tensor:
    chosen = backend("geglu", x)
    if chosen == "reference":
        a, b = x.to(wide_dtype(x)).chunk(2, dim=-1)
        dy = grad.to(wide_dtype(x))
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


@torch.library.custom_op("glimodern::geglu", mutates_args=())
def _forward_op(x: Tensor) -> Tensor:
    return _forward_impl(x)


@_forward_op.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@torch.library.custom_op("glimodern::geglu_backward", mutates_args=())
def _backward_op(grad: Tensor, x: Tensor) -> Tensor:
    return _backward_impl(grad, x)


@_backward_op.register_fake
def _(grad, x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    dx: Tensor = (_backward_impl if direct(needs_grad(grad, x), (grad, x)) else _backward_op)(grad, x)
    return dx


_forward_op.register_autograd(_autograd, setup_context=_setup)


def geglu(x: Tensor) -> Tensor:
    """gelu(x[..., :h]) * x[..., h:]: x [..., 2h] (fp32, fp16, bf16 or fp64) -> [..., h] in its dtype.

    GELU is the exact one, a * Phi(a); computed in fp32 (fp64 for fp64). The backward pass reads x again and keeps
    nothing else: da = dy * b * (Phi(a) + a * phi(a)), db = dy * gelu(a), with [a | b] = x. Source:
    https://arxiv.org/abs/2002.05202.

    Raises ValueError for an odd last dimension, TypeError for a dtype that is no float.
    """
    check_tensors("geglu", {"x": x})
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(f"geglu: x must be [..., 2h], an even last dimension, got {tuple(x.shape)}")
    return _forward_impl(x) if direct(needs_grad(x), (x,)) else _forward_op(x)
