"""add_layer_norm and add_rms_norm: a residual addition and the norm of the sum."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_tensors
from ._register import Operator
from .dispatch import accumulator_dtype, backend, direct, needs_grad, promote, storage, triton_kernels

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # normed, sum (empty if not stored), mean (empty if rms), rstd
Grads = tuple[Tensor, Tensor, Tensor]  # dx, which is dresidual too, dweight, dbias; empty where not needed


class NormInputs(NamedTuple):
    """Arguments of the registered op.

    store_sum has an effect only with a residual; without one the sum is x. rms: RMS norm, without mean and bias.
    """

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None
    eps: float
    store_sum: bool
    rms: bool


class NormGradInputs(NamedTuple):
    """Arguments of the registered backward op."""

    grad_normed: Tensor
    grad_sum: Tensor | None
    total: Tensor
    weight: Tensor
    mean: Tensor
    rstd: Tensor
    need_x: bool
    need_weight: bool
    need_bias: bool
    rms: bool


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _norm(inputs: NormInputs, store_statistics: bool) -> Outputs:
    x, residual, weight, bias, eps, store_sum, rms = inputs
    chosen = backend("add_layer_norm", x)
    dtype, width = accumulator_dtype(x), x.shape[-1]
    store_sum = store_sum and residual is not None
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if chosen == "reference":
        with torch.no_grad():
            total = x if residual is None else (x.to(dtype) + residual.to(dtype)).to(x.dtype)
            wide = total.to(dtype)
            if rms:
                normed, _ = reference.add_rms_norm(wide, None, weight, eps)
                mean, centred = wide.new_empty(0), wide
            else:
                normed, _ = reference.add_layer_norm(wide, None, weight, bias, eps)
                mean = wide.mean(-1)
                centred = wide - mean[..., None]
            rstd = (centred.square().mean(-1) + eps).rsqrt()
            return normed.to(x.dtype), total if store_sum else x.new_empty(0), mean, rstd
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    normed = torch.empty_like(x)
    total = x.new_empty(x.shape if store_sum else 0)
    mean = x.new_empty(x.shape[:-1] if store_statistics and not rms else 0, dtype=dtype)
    rstd = x.new_empty(x.shape[:-1] if store_statistics else 0, dtype=dtype)
    if not x.numel():
        return normed, total, mean, rstd
    if chosen == "triton":
        launch = triton_kernels("add_layer_norm").add_layer_norm_forward
        launch(x, residual, weight, bias, eps, normed, total if store_sum else None, mean, rstd, rms)
    else:
        tensors = (x, residual, weight, bias)
        stored = (y if y.numel() else None for y in (total, mean, rstd))
        dispatch.extension.add_layer_norm_forward(
            storage(x.dtype), *map(_address, tensors), eps, normed.data_ptr(), *map(_address, stored),
            x.numel() // width, width, rms, torch.get_num_threads(),
        )  # fmt: skip
    return normed, total, mean, rstd


def _forward(inputs: NormInputs) -> Outputs:
    return _norm(inputs, store_statistics=True)


def _fake(inputs: NormInputs) -> Outputs:
    x = inputs.x
    total = x.new_empty(x.shape if inputs.store_sum and inputs.residual is not None else 0)
    dtype = accumulator_dtype(x)
    mean = x.new_empty(0 if inputs.rms else x.shape[:-1], dtype=dtype)
    return x.new_empty(x.shape), total, mean, x.new_empty(x.shape[:-1], dtype=dtype)


def _backward(inputs: NormGradInputs) -> Grads:
    grad_normed, grad_sum, total, weight, mean, rstd, need_x, need_weight, need_bias, rms = inputs
    chosen = backend("add_layer_norm", total)
    dtype, width = accumulator_dtype(total), total.shape[-1]
    if chosen == "reference":
        dy, xhat = grad_normed.to(dtype), (total.to(dtype) - (0.0 if rms else mean[..., None])) * rstd[..., None]
        g = dy * weight.to(dtype)
        mean_g = 0.0 if rms else g.mean(-1, keepdim=True)
        dx = rstd[..., None] * (g - mean_g - xhat * (g * xhat).mean(-1, keepdim=True))
        dx = dx if grad_sum is None else dx + grad_sum.to(dtype)
        dweight, dbias = (y.reshape(-1, width).sum(0) for y in (dy * xhat, dy))
        needed = zip((dx.to(total.dtype), dweight, dbias), (need_x, need_weight, need_bias), strict=True)
        dx, dweight, dbias = (y if need else y.new_empty(0) for y, need in needed)
        return dx, dweight, dbias
    grad_normed, total, weight = grad_normed.contiguous(), total.contiguous(), weight.to(dtype).contiguous()
    grad_sum = None if grad_sum is None else grad_sum.contiguous()
    dx = total.new_empty(total.shape if need_x else 0)
    dweight, dbias = (total.new_zeros(width if need else 0, dtype=dtype) for need in (need_weight, need_bias))
    if not total.numel():
        return dx, dweight, dbias
    if chosen == "triton":
        launch = triton_kernels("add_layer_norm").add_layer_norm_backward
        launch(grad_normed, grad_sum, total, weight, mean, rstd, dx, dweight, dbias, rms)
    else:
        tensors = (grad_normed, grad_sum, total, weight, mean, rstd)
        outputs = (y if y.numel() else None for y in (dx, dweight, dbias))
        dispatch.extension.add_layer_norm_backward(
            storage(total.dtype), *map(_address, (*tensors, *outputs)), total.numel() // width, width,
            rms, torch.get_num_threads(),
        )  # fmt: skip
    return dx, dweight, dbias


def _fake_backward(inputs: NormGradInputs) -> Grads:
    total, weight, dtype = inputs.total, inputs.weight, inputs.rstd.dtype
    dweight, dbias = (
        weight.new_empty(len(weight) if need else 0, dtype=dtype) for need in (inputs.need_weight, inputs.need_bias)
    )
    return total.new_empty(total.shape if inputs.need_x else 0), dweight, dbias


_add_layer_norm = Operator("add_layer_norm", _forward, _fake)
_add_layer_norm_backward = Operator("add_layer_norm_backward", _backward, _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, residual, weight, bias, _, store_sum, ctx.rms = inputs
    _, total, mean, rstd = output
    stored = store_sum and residual is not None
    ctx.mark_non_differentiable(*(() if stored else (total,)), mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else total, weight, mean, rstd)
    ctx.sum_is_missing = residual is not None and not stored
    ctx.bias_dtype = None if bias is None else bias.dtype


def _autograd(ctx: Any, grad_normed: Tensor | None, grad_sum: Tensor | None, *_: None) -> tuple[Any, ...]:
    if ctx.sum_is_missing:
        raise RuntimeError(
            "add_layer_norm ran without store_sum: it has no gradient; call ops.add_layer_norm or ops.add_rms_norm"
        )
    total, weight, mean, rstd = ctx.saved_tensors
    need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    if grad_normed is None:
        return grad_sum, grad_sum if need_residual else None, None, None, None, None, None
    need = (need_x or need_residual, need_weight, need_bias)
    given = [x for x in (grad_normed, grad_sum, total, weight) if x is not None]
    inputs = NormGradInputs(grad_normed, grad_sum, total, weight, mean, rstd, *need, ctx.rms)
    dx, dweight, dbias = _add_layer_norm_backward(inputs, *given)
    return (
        dx if need_x else None,
        dx if need_residual else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(ctx.bias_dtype) if need_bias else None,
        None,
        None,
        None,
    )


_add_layer_norm.op.register_autograd(_autograd, setup_context=_setup)


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
    """Add a residual and norm the sum by row.

    sum = x + residual, normed = (sum - mean) / sqrt(variance + eps) * weight + bias.

    x, residual: [..., d], fp32, fp16, bf16 or fp64, promoted to the wider dtype; differentiable. residual None: plain
        layer norm, where the sum is x.
    weight, bias: [d], of any of these dtypes; differentiable. bias may be None.
    return_sum: False returns normed alone, for post-norm models; the sum is then written only if a gradient needs it.

    Returns (normed, sum) in the dtype of x and residual. Statistics are those of the sum as rounded to that dtype,
    computed in fp32 (fp64 for fp64). The backward pass saves the sum, and mean and 1 / standard deviation per row, and
    sums the gradients of weight and bias in a fixed order.

    Raises ValueError or TypeError for bad shapes, dtypes and devices.

    Source: https://arxiv.org/abs/1607.06450; fused with the addition as in
    https://github.com/Dao-AILab/flash-attention.
    """
    return _checked(x, residual, weight, bias, eps, return_sum, rms=False)


@overload
def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = ..., *, return_sum: Literal[True] = ...
) -> tuple[Tensor, Tensor]: ...


@overload
def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = ..., *, return_sum: Literal[False]
) -> Tensor: ...


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-6, *, return_sum: bool = True
) -> tuple[Tensor, Tensor] | Tensor:
    """Add a residual and scale the sum by its root mean square, by row; otherwise as `add_layer_norm`.

    sum = x + residual, normed = sum / sqrt(mean(sum^2) + eps) * weight.

    The registered op is `add_layer_norm` with rms=True. The weight multiplies before the result is rounded to its
    dtype.

    Source: https://arxiv.org/abs/1910.07467.
    """
    return _checked(x, residual, weight, None, eps, return_sum, rms=True)


def _checked(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, return_sum: bool, *, rms: bool
) -> tuple[Tensor, Tensor] | Tensor:
    optional = {name: y for name, y in (("residual", residual), ("bias", bias)) if y is not None}
    check_tensors({"x": x, "weight": weight, **optional})
    if x.ndim < 1 or (residual is not None and residual.shape != x.shape):
        raise ValueError(
            f"x, residual: expected one shape [..., d], got {tuple(x.shape)} and "
            f"{None if residual is None else tuple(residual.shape)}; expand them to one shape"
        )
    for name, y in (("weight", weight), ("bias", bias)):
        if y is not None and y.shape != x.shape[-1:]:
            raise ValueError(f"{name}: expected [{x.shape[-1]}] (the last size of x), got {tuple(y.shape)}")
    if residual is not None:
        x, residual = promote(x, residual)
    tensors = [y for y in (x, residual, weight, bias) if y is not None]
    gradient = needs_grad(*tensors)
    inputs = NormInputs(x, residual, weight, bias, float(eps), return_sum or gradient, rms)
    if direct(gradient, tensors):
        normed, total, _, _ = _norm(inputs, store_statistics=False)
    else:
        normed, total, _, _ = _add_layer_norm.registered(inputs)
    return (normed, x if residual is None else total) if return_sum else normed
