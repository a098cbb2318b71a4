"""add_layer_norm: a residual addition and the layer norm of the sum."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from .dispatch import (
    backend,
    direct,
    needs_grad,
    promote,
    storage,
    triton_kernels,
    wide_dtype,
)

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # normed, sum (empty if not stored), mean, rstd


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _forward_impl(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    store_sum: bool,
    store_statistics: bool,
) -> Outputs:
    """The sum is stored only if there is a residual: otherwise it is x."""
    chosen = backend("add_layer_norm", x)
    wide, width = wide_dtype(x), x.shape[-1]
    store_sum = store_sum and residual is not None
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    if chosen == "reference":
        with torch.no_grad():
            total = x if residual is None else (x.to(wide) + residual.to(wide)).to(x.dtype)
            normed, _ = reference.add_layer_norm(total.to(wide), None, weight, bias, eps)
            mean = total.mean(-1, dtype=wide)
            rstd = ((total.to(wide) - mean[..., None]).square().mean(-1) + eps).rsqrt()
            return normed.to(x.dtype), total if store_sum else x.new_empty(0), mean, rstd
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    normed = torch.empty_like(x)
    total = x.new_empty(x.shape if store_sum else 0)
    mean, rstd = (x.new_empty(x.shape[:-1] if store_statistics else 0, dtype=wide) for _ in range(2))
    if not x.numel():
        return normed, total, mean, rstd
    if chosen == "triton":
        launch = triton_kernels("add_layer_norm").add_layer_norm_forward
        launch(x, residual, weight, bias, eps, normed, total if store_sum else None, mean, rstd)
    else:
        tensors = (x, residual, weight, bias)
        stored = (total if store_sum else None, *((mean, rstd) if store_statistics else (None, None)))
        dispatch.extension.add_layer_norm_forward(
            storage(x.dtype), *map(_address, tensors), eps, normed.data_ptr(), *map(_address, stored),
            x.numel() // width, width, torch.get_num_threads(),
        )  # fmt: skip
    return normed, total, mean, rstd


def _backward_impl(
    grad_normed: Tensor,
    grad_sum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and residual), weight and bias; empty where not needed."""
    chosen = backend("add_layer_norm", total)
    wide, width = wide_dtype(total), total.shape[-1]
    if chosen == "reference":
        dy, xhat = grad_normed.to(wide), (total.to(wide) - mean[..., None]) * rstd[..., None]
        g = dy * weight.to(wide)
        dx = rstd[..., None] * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))
        dx = dx if grad_sum is None else dx + grad_sum.to(wide)
        dweight, dbias = (y.reshape(-1, width).sum(0) for y in (dy * xhat, dy))
        needed = zip((dx.to(total.dtype), dweight, dbias), (need_x, need_weight, need_bias), strict=True)
        dx, dweight, dbias = (y if wanted else y.new_empty(0) for y, wanted in needed)
    else:
        grad_normed, total, weight = grad_normed.contiguous(), total.contiguous(), weight.to(wide).contiguous()
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        dx = total.new_empty(total.shape if need_x else 0)
        dweight, dbias = (total.new_zeros(width if needed else 0, dtype=wide) for needed in (need_weight, need_bias))
        if not total.numel():
            pass
        elif chosen == "triton":
            launch = triton_kernels("add_layer_norm").add_layer_norm_backward
            launch(grad_normed, grad_sum, total, weight, mean, rstd, dx, dweight, dbias)
        else:
            inputs = (grad_normed, grad_sum, total, weight, mean, rstd)
            outputs = (y if y.numel() else None for y in (dx, dweight, dbias))
            dispatch.extension.add_layer_norm_backward(
                storage(total.dtype), *map(_address, (*inputs, *outputs)), total.numel() // width, width,
                torch.get_num_threads(),
            )  # fmt: skip
    return dx, dweight, dbias


@torch.library.custom_op("glimodern::add_layer_norm", mutates_args=())
def _forward_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, store_sum: bool
) -> Outputs:
    return _forward_impl(x, residual, weight, bias, eps, store_sum, True)


@_forward_op.register_fake
def _(x, residual, weight, bias, eps, store_sum):  # type: ignore[no-untyped-def]
    total = x.new_empty(x.shape if store_sum and residual is not None else 0)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=wide_dtype(x)) for _ in range(2))
    return x.new_empty(x.shape), total, mean, rstd


@torch.library.custom_op("glimodern::add_layer_norm_backward", mutates_args=())
def _backward_op(
    grad_normed: Tensor,
    grad_sum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_impl(grad_normed, grad_sum, total, weight, mean, rstd, need_x, need_weight, need_bias)


@_backward_op.register_fake
def _(grad_normed, grad_sum, total, weight, mean, rstd, need_x, need_weight, need_bias):  # type: ignore[no-untyped-def]
    dweight, dbias = (weight.new_empty(len(weight) if x else 0, dtype=mean.dtype) for x in (need_weight, need_bias))
    return total.new_empty(total.shape if need_x else 0), dweight, dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, residual, weight, bias, _, store_sum = inputs
    _, total, mean, rstd = output
    stored = store_sum and residual is not None
    ctx.mark_non_differentiable(*(() if stored else (total,)), mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else total, weight, mean, rstd)
    ctx.lost = residual is not None and not stored
    ctx.bias_dtype = None if bias is None else bias.dtype


def _autograd(ctx: Any, grad_normed: Tensor | None, grad_sum: Tensor | None, *_: None) -> tuple[Any, ...]:
    if ctx.lost:
        raise RuntimeError(
            "add_layer_norm ran without store_sum: it has no gradient; call glimodern.ops.add_layer_norm"
        )
    total, weight, mean, rstd = ctx.saved_tensors
    need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    if grad_normed is None:
        return grad_sum, grad_sum if need_residual else None, None, None, None, None
    needed = (need_x or need_residual, need_weight, need_bias)
    given = [x for x in (grad_normed, grad_sum, total, weight) if x is not None]
    run = _backward_impl if direct(needs_grad(*given), given) else _backward_op
    dx, dweight, dbias = run(grad_normed, grad_sum, total, weight, mean, rstd, *needed)
    return (
        dx if need_x else None,
        dx if need_residual else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(ctx.bias_dtype) if need_bias else None,
        None,
        None,
    )


_forward_op.register_autograd(_autograd, setup_context=_setup)


@overload
def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = ...,
    eps: float = ...,
    *,
    return_sum: Literal[True] = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = ...,
    eps: float = ...,
    *,
    return_sum: Literal[False],
) -> Tensor: ...


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    return_sum: bool = True,
) -> tuple[Tensor, Tensor] | Tensor:
    """(normed, sum): sum = x + residual, normed = (sum - mean) / sqrt(variance + eps) * weight + bias by row.

    x, residual [..., d] (fp32, fp16, bf16 or fp64, promoted to the wider; residual None: plain layer norm, and sum is
    x); weight, bias [d] of any of these dtypes (bias may be None). Both results are in the dtype of x and residual;
    statistics are of the sum as rounded to it, and computed in fp32 (fp64 for fp64). return_sum=False: normed alone,
    for post-norm models; the sum is then not written at all where no gradient is asked for. Kept for the backward
    pass: sum, and mean and 1 / standard deviation of every row. Its gradients of weight and bias are summed in a fixed
    order. Source: https://arxiv.org/abs/1607.06450; fused with the addition as in
    https://github.com/Dao-AILab/flash-attention.

    Raises ValueError or TypeError, with what was expected, for bad shapes, dtypes and devices.
    """
    optional = {name: y for name, y in (("residual", residual), ("bias", bias)) if y is not None}
    check_tensors("add_layer_norm", {"x": x, "weight": weight, **optional})
    if x.ndim < 1 or (residual is not None and residual.shape != x.shape):
        raise ValueError(
            f"add_layer_norm: x and residual must both be [..., d], got {tuple(x.shape)} and "
            f"{None if residual is None else tuple(residual.shape)}; expand them to one shape"
        )
    for name, y in (("weight", weight), ("bias", bias)):
        if y is not None and y.shape != x.shape[-1:]:
            raise ValueError(
                f"add_layer_norm: {name} must be [{x.shape[-1]}] (the last size of x), got {tuple(y.shape)}"
            )
    if residual is not None:
        x, residual = promote(x, residual)
    tensors = [y for y in (x, residual, weight, bias) if y is not None]
    gradient = needs_grad(*tensors)
    if direct(gradient, tensors):
        normed, total, _, _ = _forward_impl(x, residual, weight, bias, float(eps), return_sum, False)
    else:
        normed, total, _, _ = _forward_op(x, residual, weight, bias, float(eps), return_sum or gradient)
    return (normed, x if residual is None else total) if return_sum else normed
