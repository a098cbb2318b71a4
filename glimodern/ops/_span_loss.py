"""span_loss: focal binary cross-entropy of every span and type, without stored logits."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._span import (
    CppInputs,
    check_span_inputs,
    narrow,
    plain_grads,
    split_scores,
    text_bounds,
    widen,
)
from .dispatch import backend, direct, needs_grad, promote, triton_kernels, wide_dtype


def _check_positives(positives: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int) -> None:
    """Every row (word, k, type) must be a span of at most max_width words of one text, and a type of that text."""
    if not positives.shape[0]:
        return
    word, k, kind = positives.long().T.contiguous().unbind()
    starts, type_starts = cu_words.long(), cu_types.long()
    text = torch.searchsorted(starts[1:].contiguous(), word, right=True)
    valid = (word >= 0) & (text < len(starts) - 1) & (k >= 0) & (k < max_width)
    text = text.clamp(max=max(len(starts) - 2, 0))
    if len(starts) > 1:
        valid &= (word + k < starts[text + 1]) & (kind >= type_starts[text]) & (kind < type_starts[text + 1])
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(
            f"positives row {row} is (word, k, type) = {tuple(positives[row].tolist())}, expected a span word..word+k "
            f"of at most max_width = {max_width} words inside one text and a type of that text, word and type counted "
            "in the whole batch"
        )


def _plain_slope(
    logits: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
) -> Tensor:
    """d(sum of losses) / d(logits): sign * weight * s^gamma * (gamma * (1 - s) * softplus(x) + s), s = sigmoid(x)."""
    y = torch.zeros_like(logits, dtype=torch.bool)
    for part, w0, t0, row in _positives_by_text(y, cu_words, cu_types, positives, max_width):
        part[row[:, 0] - w0, row[:, 1], row[:, 2] - t0] = True
    x = torch.where(y, -logits, logits)
    s = torch.sigmoid(x)
    slope = (
        s
        if focal_gamma == 0.0
        else s**focal_gamma * (focal_gamma * torch.sigmoid(-x) * reference.focal_bce(x, 0.0) + s)
    )
    if class_balance is not None:
        slope = slope * torch.where(y, class_balance, 1.0 - class_balance).to(slope.dtype)
    return torch.where(y, -slope, slope) * focal_scale


def _positives_by_text(
    values: Tensor, cu_words: Tensor, cu_types: Tensor, positives: Tensor, max_width: int
) -> Iterator[tuple[Tensor, int, int, Tensor]]:
    """(view of values, first word, first type, rows) of every text; values laid out as span_scores' result."""
    texts = torch.searchsorted(cu_words[1:].contiguous(), positives[:, 0].to(cu_words.dtype).contiguous(), right=True)
    parts = split_scores(values, cu_words, cu_types, max_width)
    bounds = zip(cu_words.tolist(), cu_types.tolist(), strict=True)
    for text, (part, (w0, t0)) in enumerate(zip(parts, bounds, strict=False)):
        yield part, w0, t0, positives[texts == text].long()


def _pairs_inside(cu_words: Tensor, cu_types: Tensor, max_width: int) -> int:
    """How many (span, type) pairs lie inside their texts. Reads tensors."""
    words = cu_words.diff().long()
    widths = words.clamp(max=max_width)
    return int(((words * widths - widths * (widths - 1) // 2) * cu_types.diff()).sum())


def _loss_impl(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
    mean: bool,
    dropout_p: float,
    seed: int,
    compute_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = backend("span_loss", a)
    if a.device.type == "cpu":
        text_bounds("cu_words", cu_words, len(a)), text_bounds("cu_types", cu_types, len(u))
        _check_positives(positives, cu_words, cu_types, max_width)
    if chosen == "cpp":
        inputs = CppInputs((a, b, u, c), cu_words, cu_types, max_width, dropout_p, seed)
        rows = positives.to(torch.int64).contiguous()
        grads = inputs.zero_grads() if compute_grads else []
        scale = focal_scale / max(_pairs_inside(cu_words, cu_types, max_width), 1) if mean else focal_scale
        weights = (scale, scale) if class_balance is None else (scale * class_balance, scale * (1.0 - class_balance))
        addresses = [x.data_ptr() for x in grads] if compute_grads else [0, 0, 0, 0]
        total = dispatch.extension.span_loss(
            *inputs.arguments, rows.data_ptr(), len(rows), focal_gamma, *weights, compute_grads, *addresses,
            torch.get_num_threads(),
        )  # fmt: skip
        loss = a.new_tensor(total, dtype=inputs.wide)
        return _loss_outputs(loss, a, narrow(a, *grads) if compute_grads else [])
    if chosen == "triton":
        loss, *launched = triton_kernels("span_loss").span_loss_forward(
            a, b, u, c, cu_words.to(torch.int32), cu_types.to(torch.int32), positives, max_width, focal_gamma,
            focal_scale, class_balance, mean, dropout_p, seed, compute_grads,
        )  # fmt: skip
        return _loss_outputs(loss, a, launched if compute_grads else [])

    with torch.no_grad():
        wide = widen(a, b, u, c)
        logits = reference.span_scores(*wide, cu_words, cu_types, max_width, dropout_p, seed)
        options = (positives, max_width, focal_gamma, focal_scale, class_balance)
        loss = reference.loss_of_scores(logits, cu_words, cu_types, *options, "mean" if mean else "sum")
        if not compute_grads:
            return _loss_outputs(loss, a, [])
        slope = _plain_slope(logits, cu_words, cu_types, *options)
        if mean:
            slope = slope / max(_pairs_inside(cu_words, cu_types, max_width), 1)
        plain = plain_grads(slope, *wide, cu_words, cu_types, max_width, dropout_p, seed)
        return _loss_outputs(loss, a, narrow(a, *plain))


def _loss_outputs(loss: Tensor, a: Tensor, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    da, db, du, dc = grads if grads else (a.new_empty(0) for _ in range(4))
    return loss, da, db, du, dc


@torch.library.custom_op("glimodern::span_loss", mutates_args=())
def _loss_op(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
    mean: bool,
    dropout_p: float,
    seed: int,
    compute_grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _loss_impl(
        a, b, u, c, cu_words, cu_types, positives, max_width, focal_gamma, focal_scale, class_balance, mean, dropout_p,
        seed, compute_grads,
    )  # fmt: skip


@_loss_op.register_fake
def _(a, b, u, c, cu_words, cu_types, positives, *options):  # type: ignore[no-untyped-def]
    compute_grads = options[-1]
    loss = a.new_empty((), dtype=wide_dtype(a))
    return loss, *(x.new_empty(x.shape if compute_grads else 0) for x in (a, b, u, c))


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.compute_grads = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _loss_autograd(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
    if not ctx.compute_grads:
        raise RuntimeError("span_loss ran without compute_grads: it has no gradient; call glimodern.ops.span_loss")
    grads = (grad if needed else None for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False))
    ready = direct(False, (upstream,)) and upstream.device.type == "cpu"  # else reading it would trace, or wait
    if ready and upstream.item() == 1.0:  # loss.backward(): no copy
        return (*grads, *(None,) * 11)
    return (*(None if grad is None else (grad * upstream).to(grad.dtype) for grad in grads), *(None,) * 11)


_loss_op.register_autograd(_loss_autograd, setup_context=_loss_setup)


def span_loss(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    *,
    focal_gamma: float = 0.0,
    focal_scale: float = 1.0,
    class_balance: float | None = None,
    reduction: str = "sum",
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Focal binary cross-entropy over every (span, type) inside its text -> scalar, fp32 (fp64 for fp64 inputs).

    a .. max_width, dropout_p and seed as in `span_scores`; positives int [P, 3]: distinct rows (word, k, type), word
    and type counted in the whole batch, the span is word..word+k. Each pair costs sigmoid(x)^focal_gamma * softplus(x),
    x the negated logit of a positive or the logit of a negative, times focal_scale (the paper's alpha), times
    class_balance for a positive and 1 - class_balance for a negative (the public code's alpha; None: 1 and 1).
    reduction "mean" divides the sum by the number of pairs. Gradients are computed in the same call, if any input asks
    for one, and are not differentiable again.

    Raises ValueError or TypeError as `span_scores` does, and for positives outside their text (on the CPU).
    """
    check_span_inputs("span_loss", a, b, u, c, cu_words, cu_types, max_width, dropout_p)
    if positives.ndim != 2 or positives.shape[1] != 3 or positives.is_floating_point():
        raise ValueError(
            "span_loss: positives must be integers [P, 3], rows (word, k, type), got"
            f" {tuple(positives.shape)} {positives.dtype}"
        )
    if positives.device != a.device:
        raise ValueError(f"span_loss: positives is on {positives.device}, a on {a.device}; move it with .to(a.device)")
    if not (focal_gamma >= 0.0 and math.isfinite(focal_gamma)):
        raise ValueError(f"span_loss: focal_gamma must be finite and at least 0, got {focal_gamma}")
    if class_balance is not None and not 0.0 <= class_balance <= 1.0:
        raise ValueError(f"span_loss: class_balance must be None or in [0, 1], got {class_balance}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"span_loss: reduction must be 'sum' or 'mean', got {reduction!r}")
    a, b, u, c = promote(a, b, u, c)
    compute_grads = needs_grad(a, b, u, c)
    run = _loss_impl if direct(compute_grads, (a, b, u, c)) else _loss_op
    return run(
        a, b, u, c, cu_words, cu_types, positives, int(max_width), float(focal_gamma), float(focal_scale),
        None if class_balance is None else float(class_balance), reduction == "mean", float(dropout_p), int(seed),
        compute_grads,
    )[0]  # fmt: skip
