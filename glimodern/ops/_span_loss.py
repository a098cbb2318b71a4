"""span_loss: focal binary cross-entropy of every span and type, without stored logits."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._register import Operator
from ._span import CppInputs, SpanInputs, plain_grads
from .dispatch import accumulator_dtype, backend, direct, needs_grad, triton_kernels

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # loss, da, db, du, dc (empty if not computed)


class LossInputs(NamedTuple):
    """Arguments of span_loss: those of span_scores, positives, and the loss's options."""

    a: Tensor
    b: Tensor
    u: Tensor
    c: Tensor
    cu_words: Tensor
    cu_types: Tensor
    positives: Tensor
    max_width: int
    focal_gamma: float
    focal_scale: float
    class_balance: float | None
    mean: bool
    dropout_p: float
    seed: int
    compute_grads: bool

    @property
    def span(self) -> SpanInputs:
        return SpanInputs(*self[:6], self.max_width, self.dropout_p, self.seed)


def _check_positives(positives: Tensor, span: SpanInputs) -> None:
    """ValueError unless every row (word, k, type) is a span of one text and a type of the same text."""
    if not positives.shape[0]:
        return
    word, k, type_id = positives.long().T.contiguous().unbind()
    words, types = span.cu_words.long(), span.cu_types.long()
    text = torch.searchsorted(words[1:].contiguous(), word, right=True)
    valid = (word >= 0) & (text < len(words) - 1) & (k >= 0) & (k < span.max_width)
    text = text.clamp(max=max(len(words) - 2, 0))
    if len(words) > 1:
        valid &= (word + k < words[text + 1]) & (type_id >= types[text]) & (type_id < types[text + 1])
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(
            f"positives: expected rows (word, k, type) with a span word..word+k of at most max_width = "
            f"{span.max_width} words inside one text and a type of that text, word and type counted in the whole "
            f"batch, got {tuple(positives[row].tolist())} in row {row}"
        )


def _forward(inputs: LossInputs) -> Outputs:
    span = inputs.span
    chosen = backend("span_loss", span.a)
    span.check_offsets()
    if span.a.device.type == "cpu":
        _check_positives(inputs.positives, span)
    if chosen == "cpp":
        return _forward_cpp(inputs, span)
    if chosen == "triton":
        launch = triton_kernels("span_loss").span_loss_forward
        loss, *grads = launch(*span.floats, *span.int32_offsets(), *inputs[6:])
        return _outputs(loss, inputs, grads)
    with torch.no_grad():
        exact = span.in_accumulator_dtype()
        logits = reference.span_scores(*exact)
        batch = (logits, span.cu_words, span.cu_types, inputs.positives, span.max_width)
        options = (inputs.focal_gamma, inputs.focal_scale, inputs.class_balance, "mean" if inputs.mean else "sum")
        loss = reference.loss_of_scores(*batch, *options)
        if not inputs.compute_grads:
            return _outputs(loss, inputs, [])
        grad_logits = reference.loss_gradient(*batch, *options)
        return _outputs(loss, inputs, span.rounded(plain_grads(grad_logits, exact)))


def _forward_cpp(inputs: LossInputs, span: SpanInputs) -> Outputs:
    kernel = CppInputs(span)
    positives = inputs.positives.to(torch.int64).contiguous()
    grads = kernel.zero_grads() if inputs.compute_grads else []
    scale, balance = inputs.focal_scale, inputs.class_balance
    if inputs.mean:
        scale /= max(int(reference.pairs_inside(span.cu_words, span.cu_types, span.max_width)), 1)
    weights = (scale, scale) if balance is None else (scale * balance, scale * (1.0 - balance))
    addresses = [x.data_ptr() for x in grads] if inputs.compute_grads else [0, 0, 0, 0]
    total = dispatch.extension.span_loss(
        *kernel.arguments, positives.data_ptr(), len(positives), inputs.focal_gamma, *weights, inputs.compute_grads,
        *addresses, torch.get_num_threads(),
    )  # fmt: skip
    loss = span.a.new_tensor(total, dtype=kernel.accumulator_dtype)
    return _outputs(loss, inputs, span.rounded(grads) if inputs.compute_grads else [])


def _outputs(loss: Tensor, inputs: LossInputs, grads: Sequence[Tensor]) -> Outputs:
    da, db, du, dc = grads if inputs.compute_grads else (inputs.a.new_empty(0) for _ in range(4))
    return loss, da, db, du, dc


def _fake(inputs: LossInputs) -> Outputs:
    loss = inputs.a.new_empty((), dtype=accumulator_dtype(inputs.a))
    return _outputs(loss, inputs, [x.new_empty(x.shape) for x in inputs[:4]])


_span_loss = Operator("span_loss", _forward, _fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.compute_grads = LossInputs(*inputs).compute_grads
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _autograd(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
    if not ctx.compute_grads:
        raise RuntimeError("span_loss ran without compute_grads: it has no gradient; call glimodern.ops.span_loss")
    grads = [grad if needed else None for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
    readable = direct(False, (upstream,)) and upstream.device.type == "cpu"  # else reading it would trace, or wait
    if not (readable and upstream.item() == 1.0):  # 1: loss.backward(), without a copy
        grads = [None if grad is None else (grad * upstream).to(grad.dtype) for grad in grads]
    return (*grads, *(None,) * (len(_span_loss.fields) - len(grads)))


_span_loss.op.register_autograd(_autograd, setup_context=_setup)


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
    """Focal binary cross-entropy over every (span, type) inside its text.

    a .. max_width, dropout_p, seed: as in `span_scores`.
    positives: int [P, 3], distinct rows (word, k, type), word and type counted in the whole batch, for the span
        word..word+k.
    focal_gamma, focal_scale, class_balance: a pair costs sigmoid(x)^focal_gamma * softplus(x) * focal_scale, where x is
        the negated logit of a positive or the logit of a negative. focal_scale is the paper's alpha. class_balance,
        the public code's alpha, multiplies positives, and 1 - class_balance negatives; None multiplies neither.
    reduction: "sum", or "mean" over the pairs.

    Returns a scalar in fp32 (fp64 for fp64 inputs). The same call computes the gradients if any input requires one;
    they are not differentiable again.

    Raises ValueError or TypeError as `span_scores` does and, on the CPU, for positives outside their text.

    Source: https://arxiv.org/abs/1708.02002.
    """
    span = SpanInputs(a, b, u, c, cu_words, cu_types, int(max_width), float(dropout_p), int(seed)).checked()
    if positives.ndim != 2 or positives.shape[1] != 3 or positives.is_floating_point():
        raise ValueError(
            f"positives: expected integers [P, 3], rows (word, k, type), got {positives.dtype} {tuple(positives.shape)}"
        )
    if positives.device != a.device:
        raise ValueError(
            f"positives: expected device {a.device}, that of a, got {positives.device}; move it with .to(a.device)"
        )
    if not (focal_gamma >= 0.0 and math.isfinite(focal_gamma)):
        raise ValueError(f"focal_gamma: expected a finite number of at least 0, got {focal_gamma}")
    if class_balance is not None and not 0.0 <= class_balance <= 1.0:
        raise ValueError(f"class_balance: expected None or a number in [0, 1], got {class_balance}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
    floats = span.floats
    compute_grads = needs_grad(*floats)
    inputs = LossInputs(
        *floats, cu_words, cu_types, positives, span.max_width, float(focal_gamma), float(focal_scale),
        None if class_balance is None else float(class_balance), reduction == "mean", span.dropout_p, span.seed,
        compute_grads,
    )  # fmt: skip
    return _span_loss(inputs, *floats)[0]
