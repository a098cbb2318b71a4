"""span_scores: the logits of every span and type, ragged by text."""

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._register import differentiable_op
from ._span import CppInputs, Grads, SpanInputs, plain_grads
from .dispatch import accumulator_dtype, backend, triton_kernels


def _size(inputs: SpanInputs) -> int:
    """Number of logits; checks the offsets, and reads them."""
    words, types = inputs.offsets()
    texts = zip(words, words[1:], types, types[1:], strict=False)
    return sum((w1 - w0) * (t1 - t0) for w0, w1, t0, t1 in texts) * inputs.max_width


def _forward(inputs: SpanInputs) -> Tensor:
    chosen = backend("span_scores", inputs.a)
    if chosen == "cpp":
        kernel = CppInputs(inputs)
        logits = inputs.a.new_empty(_size(inputs), dtype=kernel.accumulator_dtype)
        dispatch.extension.span_scores_forward(*kernel.arguments, logits.data_ptr(), torch.get_num_threads())
        return logits
    inputs.check_offsets()
    if chosen == "triton":
        launch = triton_kernels("span_scores").span_scores_forward
        return launch(*inputs.floats, *inputs.int32_offsets(), *inputs[6:])
    with torch.no_grad():
        return reference.span_scores(*inputs.in_accumulator_dtype())


def _backward(grad: Tensor, inputs: SpanInputs) -> Grads:
    chosen = backend("span_scores", inputs.a)
    if chosen == "cpp":
        kernel = CppInputs(inputs)
        upstream, grads = grad.to(kernel.accumulator_dtype).contiguous(), kernel.zero_grads()
        addresses = [x.data_ptr() for x in (upstream, *grads)]
        dispatch.extension.span_scores_backward(*kernel.arguments, *addresses, torch.get_num_threads())
        return inputs.rounded(grads)
    if chosen == "triton":
        launch = triton_kernels("span_scores").span_scores_backward
        return launch(grad, *inputs[:3], *inputs.int32_offsets(), *inputs[6:])
    return inputs.rounded(plain_grads(grad.to(accumulator_dtype(inputs.a)), inputs.in_accumulator_dtype()))


def _fake(inputs: SpanInputs) -> Tensor:
    length = torch.library.get_ctx().new_dynamic_size()
    return inputs.a.new_empty(length, dtype=accumulator_dtype(inputs.a))


_span_scores = differentiable_op("span_scores", _forward, _backward, _fake)


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

    a, b: [n, H], one row per word. u: [m, H], c: [m], one row per entity type. All four fp32, fp16, bf16 or fp64,
        promoted to the widest dtype among them; differentiable.
    cu_words, cu_types: int32 [texts + 1], the texts' offsets in a and b, and in u and c.
    dropout_p: share of relu(a + b) that is dropped, by a counter-based generator that depends on seed and position
        alone (`reference.dropout_keep`).

    Returns the logits in fp32 (fp64 for fp64 inputs), [sum of words * max_width * types]: text after text, each
    row-major [words, max_width, types] (`split_scores` cuts them up). A span i..i+k that leaves its text has the logit
    -inf and no gradient. Nothing of size n * max_width * H is stored.

    Raises ValueError or TypeError for bad shapes, dtypes and devices and, on the CPU, for bad offsets.
    """
    inputs = SpanInputs(a, b, u, c, cu_words, cu_types, int(max_width), float(dropout_p), int(seed)).checked()
    return _span_scores(inputs, *inputs.floats)
