"""rotary: positions by rotation of pairs."""

from typing import Any

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from .dispatch import backend, direct, needs_grad, storage, triton_kernels, wide_dtype


def _impl(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    chosen = backend("rotary", x)
    wide = wide_dtype(x)
    cos, sin = cos.to(wide).contiguous(), sin.to(wide).contiguous()
    if chosen == "reference":
        with torch.no_grad():
            return reference.rotary(x.to(wide), cos, -sin if inverse else sin).to(x.dtype)
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    grouped = x if x.ndim == 4 else x[:, None]
    if grouped.stride(-1) != 1:
        grouped = grouped.contiguous()
    if chosen == "triton":
        triton_kernels("rotary").rotary(grouped, cos, sin, y, inverse)
    else:
        tokens, groups, heads, head_dim = grouped.shape
        addresses = (grouped.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
        dispatch.extension.rotary(
            storage(x.dtype), *addresses, tokens, groups, heads, head_dim // 2, *grouped.stride()[:3], inverse,
            torch.get_num_threads(),
        )  # fmt: skip
    return y


@torch.library.custom_op("glimodern::rotary", mutates_args=())
def _op(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    return _impl(x, cos, sin, inverse)


@_op.register_fake
def _(x, cos, sin, inverse):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _op(grad, *ctx.saved_tensors, not ctx.inverse), None, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[x1 cos - x2 sin | x2 cos + x1 sin] with [x1 | x2] = x, one angle a token and pair, the same for all heads.

    x [n, heads, 2h] or [n, groups, heads, 2h] (fp32, fp16, bf16 or fp64), of any strides: queries and keys may be the
    slice qkv[:, :2] of the fused projection. cos, sin [n, h], not differentiable; fp32 whatever x is, since bf16 angles
    would be wrong beyond 256 positions. -> contiguous, in the shape and dtype of x; computed in fp32 (fp64 for fp64).
    The backward pass turns by the opposite angles, so only cos and sin are kept. Source:
    https://arxiv.org/abs/2104.09864, in the half-split form of public checkpoints.

    Raises ValueError or TypeError, with what was expected, for bad shapes, dtypes and devices.
    """
    check_tensors("rotary", {"x": x, "cos": cos, "sin": sin})
    if x.ndim not in (3, 4) or x.shape[-1] % 2:
        raise ValueError(
            f"rotary: x must be [n, heads, 2h] or [n, groups, heads, 2h], an even head width, got {tuple(x.shape)}"
        )
    wanted = (x.shape[0], x.shape[-1] // 2)
    if cos.shape != wanted or sin.shape != wanted:
        raise ValueError(
            f"rotary: cos and sin must be {list(wanted)} (tokens and half the head width of x), got "
            f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if needs_grad(cos, sin):
        raise ValueError("rotary: cos and sin have no gradient; give them detached")
    return _impl(x, cos, sin, False) if direct(needs_grad(x), (x, cos, sin)) else _op(x, cos, sin, False)
