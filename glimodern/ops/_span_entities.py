"""span_entities: the spans and types above a threshold, without stored logits."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._register import Operator
from ._span import CppInputs, SpanInputs
from .dispatch import accumulator_dtype, backend, triton_kernels

_VECTOR = 64  # elements: at least the step of PyTorch's vectorised loops, and a multiple of it


class SpanEntities(NamedTuple):
    """Candidates of a batch, [count] each, on one device, in the order that the operator states."""

    word: Tensor
    """int64: the span's first word, counted in the batch."""
    width: Tensor
    """int64: k of the span word..word + k."""
    type: Tensor
    """int64: the entity type, counted in the batch."""
    score: Tensor
    """fp32 (fp64 for fp64 inputs): the probability."""


class EntityInputs(NamedTuple):
    """Arguments of the registered op: those of span_scores without dropout, and one threshold or one per type."""

    a: Tensor
    b: Tensor
    u: Tensor
    c: Tensor
    cu_words: Tensor
    cu_types: Tensor
    threshold: float
    thresholds: Tensor | None
    max_width: int

    @property
    def span(self) -> SpanInputs:
        return SpanInputs(*self[:6], self.max_width, 0.0, 0)


def probabilities(logits: Tensor) -> Tensor:
    """sigmoid of logits [n], as `span_entities` computes its scores: with the same bits for a logit at every position.

    PyTorch's CPU kernel computes a vector's last elements by another exp than the others, an ulp away, so a score would
    depend on the number of candidates in a batch. Padding to whole vectors makes all elements go the same way.
    """
    if logits.device.type != "cpu":
        return torch.sigmoid(logits)
    return torch.sigmoid(torch.nn.functional.pad(logits, (0, -len(logits) % _VECTOR)))[: len(logits)]


def check_threshold(threshold: float | Tensor, types: int, device: torch.device) -> tuple[float, Tensor | None]:
    """(a number in [0, 1], None), or (0, fp32 [types]), whose values `check_range` checks."""
    if not isinstance(threshold, Tensor):
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold}")
        return float(threshold), None
    if threshold.shape != (types,) or not threshold.is_floating_point():
        raise ValueError(
            f"threshold: expected a number or a float tensor [{types}] (one per type), got {threshold.dtype}"
            f" {tuple(threshold.shape)}"
        )
    if threshold.device != device:
        raise ValueError(
            f"threshold: expected device {device}, that of a, got {threshold.device}; move it with .to(a.device)"
        )
    return 0.0, threshold.detach().to(torch.float32)


def check_range(thresholds: Tensor) -> None:
    """ValueError for a threshold outside [0, 1]; reads the tensor."""
    bad = ~((thresholds >= 0.0) & (thresholds <= 1.0))
    if bool(bad.any()):
        raise ValueError(f"threshold: expected probabilities in [0, 1], got {float(thresholds[bad][0])}")


def logit_bounds(threshold: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Largest logits of `dtype` whose reference.probability is not above each threshold: fp32 [m] -> [m].

    With these bounds kernels compare logits alone, and decide as if they compared probabilities. A probability is above
    t if, before it is rounded to fp32, it lies above the midpoint of t and its successor (or on it, where the rounding
    of ties decides). The midpoint's logit is right to an ulp; among it and its neighbours the probability itself
    decides. For fp64 logits the bound is the midpoint's logit, right to the rounding of a sigmoid in fp64.
    """
    above = torch.nextafter(threshold, torch.full_like(threshold, 2.0))
    midpoint = (threshold.double() + above.double()) / 2
    nearest = torch.where(threshold < 1.0, torch.logit(midpoint), torch.inf).to(dtype)
    if dtype == torch.float64:
        return nearest
    bounds = torch.full_like(nearest, -torch.inf)
    for toward in (-torch.inf, torch.inf):
        candidate = nearest
        for _ in range(3):
            passes = reference.probability(candidate) > threshold
            bounds = torch.where(passes, bounds, torch.maximum(bounds, candidate))
            candidate = torch.nextafter(candidate, torch.full_like(candidate, toward))
    return bounds


@functools.lru_cache(maxsize=256)
def _logit_bound(threshold: float, dtype: torch.dtype) -> float:
    return float(logit_bounds(torch.tensor([threshold], dtype=torch.float32, device="cpu"), dtype))


def type_bounds(
    threshold: float, thresholds: Tensor | None, types: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Bound of each type for logits of dtype (fp32 or fp64), [types], from what check_threshold returns."""
    if thresholds is None:
        return torch.full((types,), _logit_bound(threshold, dtype), dtype=dtype, device=device)
    return logit_bounds(thresholds, dtype)


def _forward(inputs: EntityInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """word, width, type, score of the candidates."""
    span, threshold, thresholds = inputs.span, inputs.threshold, inputs.thresholds
    a, types = span.a, len(span.u)
    chosen = backend("span_entities", a)
    span.check_offsets()
    if thresholds is not None and a.device.type == "cpu":
        check_range(thresholds)
    if chosen == "cpp":
        kernel = CppInputs(span)
        bounds = type_bounds(threshold, thresholds, types, a.device, kernel.accumulator_dtype)
        candidates = dispatch.extension.span_entities(*kernel.arguments, bounds.data_ptr(), torch.get_num_threads())
        word, width, type_id = (a.new_empty(len(candidates), dtype=torch.int64) for _ in range(3))
        logits = a.new_empty(len(candidates), dtype=kernel.accumulator_dtype)
        candidates.copy_to(*(x.data_ptr() for x in (word, width, type_id, logits)))
    elif chosen == "triton":
        launch = triton_kernels("span_entities").span_entities_forward
        bounds = type_bounds(threshold, thresholds, types, a.device, accumulator_dtype(a))
        word, width, type_id, logits = launch(*span.floats, *span.int32_offsets(), bounds, span.max_width)
    else:
        with torch.no_grad():
            limits = a.new_full((types,), threshold, dtype=torch.float32) if thresholds is None else thresholds
            exact = span.in_accumulator_dtype()
            word, width, type_id, logits = reference.span_entities(*exact[:7], limits)
    return word, width, type_id, probabilities(logits.to(accumulator_dtype(a)))


def _fake(inputs: EntityInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = inputs.a
    count = torch.library.get_ctx().new_dynamic_size()
    word, width, type_id = (a.new_empty(count, dtype=torch.int64) for _ in range(3))
    return word, width, type_id, a.new_empty(count, dtype=accumulator_dtype(a))


_span_entities = Operator("span_entities", _forward, _fake)


def span_entities(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    threshold: float | Tensor,
) -> SpanEntities:
    """Spans and types whose probability is above a threshold: sigmoid(relu(a_i + b_{i+k}) . u_t + c_t) > threshold.

    a .. max_width: as in `span_scores`.
    threshold: a probability in [0, 1], or a float tensor [m] of one per type.

    Returns SpanEntities, ordered by (text, word, width, type); no gradients. The fp32 logit decides, by its sigmoid
    computed in fp64 and rounded to fp32, alike on every backend and number of threads. The score is PyTorch's fp32
    sigmoid, at most an ulp or two away, so that scores tie where the public package's do. For fp64 inputs, logits and
    scores are fp64, and the same rounded sigmoid decides. A NaN logit is a candidate with the score NaN, so that broken
    weights do not look like "nothing found". The logits of one block of words exist at a time.

    Raises ValueError or TypeError as `span_scores` does, and for a threshold outside [0, 1] (a tensor's, on the CPU).
    """
    span = SpanInputs(a, b, u, c, cu_words, cu_types, int(max_width), 0.0, 0).checked()
    number, per_type = check_threshold(threshold, len(u), a.device)
    a, b, u, c = (x.detach() for x in span.floats)
    inputs = EntityInputs(a, b, u, c, cu_words, cu_types, number, per_type, span.max_width)
    return SpanEntities(*_span_entities(inputs, a, b, u, c))
