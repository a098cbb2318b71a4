"""rotary: rotary position embedding."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from ._register import Operator
from .dispatch import accumulator_dtype, backend, needs_grad, storage, triton_kernels


class RotaryInputs(NamedTuple):
    """Arguments of the registered op."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    inverse: bool


def _forward(inputs: RotaryInputs) -> Tensor:
    x, cos, sin, inverse = inputs
    chosen = backend("rotary", x)
    dtype = accumulator_dtype(x)
    cos, sin = cos.to(dtype).contiguous(), sin.to(dtype).contiguous()
    if chosen == "reference":
        with torch.no_grad():
            return reference.rotary(x.to(dtype), cos, -sin if inverse else sin).to(x.dtype)
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


def _fake(inputs: RotaryInputs) -> Tensor:
    return inputs.x.new_empty(inputs.x.shape)


_rotary = Operator("rotary", _forward, _fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    cos, sin = ctx.saved_tensors
    return _rotary(RotaryInputs(grad, cos, sin, not ctx.inverse), grad, cos, sin), None, None, None


_rotary.op.register_autograd(_autograd, setup_context=_setup)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of elements by their token's angles: [x1 cos - x2 sin | x2 cos + x1 sin] with [x1 | x2] = x.

    x: [n, heads, 2h] or [n, groups, heads, 2h], fp32, fp16, bf16 or fp64, of any strides: queries and keys may be the
        slice qkv[:, :2] of a fused projection.
    cos, sin: [n, h], one angle per token and pair, the same for all heads; not differentiable. Give fp32 whatever the
        dtype of x: bf16 angles are wrong beyond 256 positions.

    Returns a contiguous tensor in the shape and dtype of x, computed in fp32 (fp64 for fp64). The backward pass rotates
    by the opposite angles, and saves cos and sin alone.

    Raises ValueError or TypeError for bad shapes, dtypes and devices.

    Source: https://arxiv.org/abs/2104.09864, in the half-split form of public checkpoints.
    """
    check_tensors({"x": x, "cos": cos, "sin": sin})
    if x.ndim not in (3, 4) or x.shape[-1] % 2:
        raise ValueError(
            f"x: expected [n, heads, 2h] or [n, groups, heads, 2h], an even head width, got {tuple(x.shape)}"
        )
    expected = (x.shape[0], x.shape[-1] // 2)
    if cos.shape != expected or sin.shape != expected:
        raise ValueError(
            f"cos, sin: expected {list(expected)} (tokens and half the head width of x), got "
            f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if needs_grad(cos, sin):
        raise ValueError("cos, sin: expected tensors without gradients, got one that requires them; detach it")
    return _rotary(RotaryInputs(x, cos, sin, False), x, cos, sin)
