"""span_entities: the spans and types above a threshold, without stored logits."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._span import CppInputs, check_span_inputs, text_bounds, widen
from .dispatch import backend, direct, promote, triton_kernels, wide_dtype

_VECTOR = 64  # elements: at least the step of PyTorch's vectorised loops, and a multiple of it


class SpanEntities(NamedTuple):
    """Candidates of a batch, [count] each, on one device, ordered by (text, word, width, type)."""

    word: Tensor
    """int64: the span's first word, counted in the batch."""
    width: Tensor
    """int64: k of the span word..word + k."""
    type: Tensor
    """int64: the entity type, counted in the batch."""
    score: Tensor
    """fp32 (fp64 of fp64 inputs): the probability."""


def scores_of(logits: Tensor) -> Tensor:
    """sigmoid of logits [n], the same bits for a logit wherever it stands.

    PyTorch's CPU kernel computes a vector's last elements by another exp than the others, an ulp away, so a score would
    depend on how many candidates a batch has. Padded to whole vectors, all are computed alike.
    """
    if logits.device.type != "cpu":
        return torch.sigmoid(logits)
    return torch.sigmoid(torch.nn.functional.pad(logits, (0, -len(logits) % _VECTOR)))[: len(logits)]


def check_threshold(
    op: str, threshold: float | Tensor, types: int, device: torch.device
) -> tuple[float, Tensor | None]:
    """(the number, None), in [0, 1]; or (0, fp32 [types]), on the CPU each in [0, 1]."""
    if not isinstance(threshold, Tensor):
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"{op}: threshold must be in [0, 1] (a probability), got {threshold}")
        return float(threshold), None
    if threshold.shape != (types,) or not threshold.is_floating_point():
        raise ValueError(
            f"{op}: threshold must be a float or a float tensor [{types}] (one a type), got {threshold.dtype}"
            f" {tuple(threshold.shape)}"
        )
    if threshold.device != device:
        raise ValueError(f"{op}: threshold is on {threshold.device}, a on {device}; move it with .to(a.device)")
    return 0.0, threshold.detach().to(torch.float32)


def logit_bounds(threshold: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """fp32 [m] probabilities -> [m], the largest logit of `dtype` whose reference.probability is not above each.

    So kernels compare logits alone, with the same result as comparing probabilities. A probability is above t if, not
    yet rounded to fp32, it is above the middle of t and its successor (or in it, where the rounding of ties decides):
    the middle's logit is right to an ulp, and among it and its neighbours the probability itself decides. For fp64
    logits it is the middle's logit, right to the rounding of a sigmoid in fp64.
    """
    above = torch.nextafter(threshold, torch.full_like(threshold, 2.0))
    middle = (threshold.double() + above.double()) / 2
    nearest = torch.where(threshold < 1.0, torch.logit(middle), torch.inf).to(dtype)
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


@functools.cache
def _logit_bound(threshold: float, dtype: torch.dtype) -> float:
    return float(logit_bounds(torch.tensor([threshold], dtype=torch.float32, device="cpu"), dtype))


def type_bounds(
    threshold: float, thresholds: Tensor | None, types: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What check_threshold returns -> the bound of each type for logits of dtype (fp32 or fp64), [types] in it."""
    if thresholds is None:
        return torch.full((types,), _logit_bound(threshold, dtype), dtype=dtype, device=device)
    return logit_bounds(thresholds, dtype)


def _check_range(thresholds: Tensor) -> None:
    bad = ~((thresholds >= 0.0) & (thresholds <= 1.0))
    if bool(bad.any()):
        raise ValueError(f"threshold must be in [0, 1] (probabilities), got {float(thresholds[bad][0])}")


def _entities_impl(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    threshold: float,
    thresholds: Tensor | None,
    max_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = backend("span_entities", a)
    if a.device.type == "cpu":
        text_bounds("cu_words", cu_words, len(a)), text_bounds("cu_types", cu_types, len(u))
        if thresholds is not None:
            _check_range(thresholds)
    if chosen == "cpp":
        inputs = CppInputs((a, b, u, c), cu_words, cu_types, max_width, 0.0, 0)
        bounds = type_bounds(threshold, thresholds, len(u), a.device, wide_dtype(a))
        found = dispatch.extension.span_entities(*inputs.arguments, bounds.data_ptr(), torch.get_num_threads())
        word, width, kind = (a.new_empty(len(found), dtype=torch.int64) for _ in range(3))
        logit = a.new_empty(len(found), dtype=inputs.wide)
        found.copy_to(*(x.data_ptr() for x in (word, width, kind, logit)))
    elif chosen == "triton":
        launch = triton_kernels("span_entities").span_entities_forward
        bounds = type_bounds(threshold, thresholds, len(u), a.device, wide_dtype(a))
        word, width, kind, logit = launch(
            a, b, u, c, cu_words.to(torch.int32), cu_types.to(torch.int32), bounds, max_width
        )
    else:
        with torch.no_grad():
            limits = u.new_full((len(u),), threshold, dtype=torch.float32) if thresholds is None else thresholds
            wide = widen(a, b, u, c)
            word, width, kind, logit = reference.span_entities(*wide, cu_words, cu_types, max_width, limits)
    return word, width, kind, scores_of(logit.to(wide_dtype(a)))


@torch.library.custom_op("glimodern::span_entities", mutates_args=())
def _entities_op(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    threshold: float,
    thresholds: Tensor | None,
    max_width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _entities_impl(a, b, u, c, cu_words, cu_types, threshold, thresholds, max_width)


@_entities_op.register_fake
def _(a, b, u, c, cu_words, cu_types, threshold, thresholds, max_width):  # type: ignore[no-untyped-def]
    count = torch.library.get_ctx().new_dynamic_size()
    places = (a.new_empty(count, dtype=torch.int64) for _ in range(3))
    return *places, a.new_empty(count, dtype=wide_dtype(a))


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
    """The spans and types whose probability is above a threshold: sigmoid(relu(a_i + b_{i+k}) . u_t + c_t) > threshold.

    a .. max_width as in `span_scores`; threshold a probability in [0, 1], or a float tensor [m] of one a type, compared
    strictly. -> SpanEntities, ordered by (text, word, width, type). What is above is decided by the sigmoid of the fp32
    logit computed in fp64 and rounded to fp32, alike on every backend and number of threads; the score is PyTorch's
    fp32 sigmoid, at most an ulp or two away, in which scores tie as the public package's do. Of fp64 inputs, logits
    and scores are fp64, and that rounded sigmoid decides all the same. A NaN logit is a candidate
    with the score NaN: broken weights do not look like "nothing found". No gradients; the logits
    exist for one block of words at a time.

    Raises ValueError or TypeError as `span_scores` does, and for a threshold outside [0, 1] (a tensor's, on the CPU).
    """
    check_span_inputs("span_entities", a, b, u, c, cu_words, cu_types, max_width, 0.0)
    number, each = check_threshold("span_entities", threshold, len(u), a.device)
    a, b, u, c = (x.detach() for x in promote(a, b, u, c))
    run = _entities_impl if direct(False, (a, b, u, c)) else _entities_op
    return SpanEntities(*run(a, b, u, c, cu_words, cu_types, number, each, int(max_width)))
