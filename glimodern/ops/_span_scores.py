"""span_scores: the logits of every span and type, ragged by text."""

from typing import Any

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._span import (
    CppInputs,
    Grads,
    check_span_inputs,
    narrow,
    plain_grads,
    text_bounds,
    widen,
)
from .dispatch import backend, direct, needs_grad, promote, triton_kernels, wide_dtype


def _scores_impl(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    chosen = backend("span_scores", a)
    size = 0
    if a.device.type == "cpu":
        words, types = text_bounds("cu_words", cu_words, len(a)), text_bounds("cu_types", cu_types, len(u))
        pairs = zip(zip(words, words[1:], strict=False), zip(types, types[1:], strict=False), strict=True)
        size = sum((w1 - w0) * (t1 - t0) for (w0, w1), (t0, t1) in pairs) * max_width
    if chosen == "cpp":
        inputs = CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        logits = a.new_empty(size, dtype=inputs.wide)
        dispatch.extension.span_scores_forward(*inputs.arguments, logits.data_ptr(), torch.get_num_threads())
        return logits
    if chosen == "triton":
        launch = triton_kernels("span_scores").span_scores_forward
        return launch(a, b, u, c, cu_words.to(torch.int32), cu_types.to(torch.int32), max_width, dropout_p, seed)
    with torch.no_grad():
        wide = widen(a, b, u, c)
        return reference.span_scores(*wide, cu_words, cu_types, max_width, dropout_p, seed)


def _scores_backward_impl(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    chosen = backend("span_scores", a)
    if chosen == "cpp":
        inputs = CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        upstream, grads = grad_logits.to(inputs.wide).contiguous(), inputs.zero_grads()
        addresses = [x.data_ptr() for x in (upstream, *grads)]
        dispatch.extension.span_scores_backward(*inputs.arguments, *addresses, torch.get_num_threads())
        return narrow(a, *grads)
    if chosen == "triton":
        launch = triton_kernels("span_scores").span_scores_backward
        return launch(
            grad_logits, a, b, u, cu_words.to(torch.int32), cu_types.to(torch.int32), max_width, dropout_p, seed
        )
    wide, upstream = widen(a, b, u, c), grad_logits.to(wide_dtype(a))
    return narrow(a, *plain_grads(upstream, *wide, cu_words, cu_types, max_width, dropout_p, seed))


@torch.library.custom_op("glimodern::span_scores", mutates_args=())
def _scores_op(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    return _scores_impl(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)


@_scores_op.register_fake
def _(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed):  # type: ignore[no-untyped-def]
    return a.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=wide_dtype(a))


@torch.library.custom_op("glimodern::span_scores_backward", mutates_args=())
def _scores_backward_op(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    return _scores_backward_impl(grad_logits, a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)


@_scores_backward_op.register_fake
def _(grad_logits, a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (a, b, u, c))


def _scores_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _scores_autograd(ctx: Any, grad_logits: Tensor) -> tuple[Any, ...]:
    grads = _scores_backward_op(grad_logits, *ctx.saved_tensors, *ctx.options)
    wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None)


_scores_op.register_autograd(_scores_autograd, setup_context=_scores_setup)


def span_scores(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Logits of every span and type, ragged by text: drop(relu(a_i + b_{i+k})) . u_t + c_t.

    a, b [n, H] per word; u [m, H], c [m] per entity type (fp32, fp16, bf16 or fp64, promoted to the widest among them;
    all four differentiable); cu_words, cu_types int32 [texts + 1]: the texts' bounds in a and b, and in u and c.
    -> fp32 (fp64 for fp64 inputs) [sum of words * max_width * types]: text after text, each row-major [words,
    max_width, types] (`split_scores` cuts it up); -inf, without gradient, where the span i..i+k leaves its text.
    dropout_p drops elements of relu(a + b) by a counter-based generator, a function of seed and place alone
    (reference.dropout_keep). Nothing of size n * max_width * H is stored.

    Raises ValueError or TypeError, with what was expected, for bad shapes, dtypes, devices and, on the CPU, bounds.
    """
    check_span_inputs("span_scores", a, b, u, c, cu_words, cu_types, max_width, dropout_p)
    a, b, u, c = promote(a, b, u, c)
    run = _scores_impl if direct(needs_grad(a, b, u, c), (a, b, u, c)) else _scores_op
    return run(a, b, u, c, cu_words, cu_types, int(max_width), float(dropout_p), int(seed))
