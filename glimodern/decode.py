"""From the logits of one text to its entities: candidates above a threshold, then greedy search.

The results, ties included, are those of the public gliner package (its ``decoding/decoder.py``, 0.2.29,
https://github.com/urchade/GLiNER); tests/test_decode.py runs both side by side. There every candidate is compared with
every span kept so far; here an array over the words answers the same question, so the work grows with
candidates x span width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch


class Candidates(NamedTuple):
    """Spans of one text whose score passed the threshold, all [count], ordered by (start, end, type)."""

    start: npt.NDArray[np.int64]
    """First word."""
    end: npt.NDArray[np.int64]
    """Last word, inclusive."""
    type: npt.NDArray[np.int64]
    """Index of the entity type."""
    score: npt.NDArray[np.float32]
    """Probability, sigmoid of the logit in float32."""


def find_candidates(logits: torch.Tensor, threshold: float | Sequence[float]) -> Candidates:
    """The spans of one text with sigmoid(logit) strictly above the threshold.

    logits [words, K, types], any float dtype and device; logits[i, k, t] scores words i..i+k for type t. Entries whose
    span would leave the text are ignored, whatever they hold. threshold is one number in [0, 1] or one a type; the
    comparison is made in float32. Raises ValueError on a wrong shape, on a threshold outside [0, 1] and on NaN logits.
    """
    if logits.dim() != 3 or not logits.is_floating_point():
        raise ValueError(
            f"logits: wanted a float tensor [words, K, types], got {logits.dtype} {list(logits.shape)}; "
            "pass one text at a time (ops.split_scores gives them)"
        )
    words, max_width, types = logits.shape
    limits = np.asarray(threshold, dtype=np.float32)
    if limits.shape not in ((), (types,)):
        raise ValueError(
            f"threshold: wanted one number or one for each of the {types} types, got shape {list(limits.shape)}"
        )
    if not ((limits >= 0) & (limits <= 1)).all():
        raise ValueError(f"threshold: wanted probabilities in [0, 1], got {threshold}")

    probabilities = torch.sigmoid(logits.float())
    chosen = ~(probabilities <= torch.from_numpy(limits).to(logits.device))  # above, or NaN
    index = chosen.flatten().nonzero()[:, 0]  # row-major: by start, width, type
    score = probabilities.flatten()[index].cpu().numpy()
    start, width, kind = np.unravel_index(index.cpu().numpy(), (words, max_width, types))
    inside = start + width < words
    if np.isnan(score[inside]).any():
        raise ValueError("logits: wanted numbers, got NaN; the model's weights or its input are broken")
    return Candidates(start[inside], (start + width)[inside], kind[inside], score[inside])


def greedy_decode(
    starts: npt.ArrayLike,
    ends: npt.ArrayLike,
    types: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    flat: bool = True,
    multi_label: bool = False,
) -> npt.NDArray[np.int64]:
    """Indices of the candidates to keep, in output order: ``greedy_decode(*find_candidates(logits, 0.5))``.

    starts, ends (inclusive word indices), types, scores: [count]. Candidates are taken by falling score, equal scores
    in the order given; one is dropped when it conflicts with one already kept. The same words twice conflict unless
    multi_label, whatever the types. Different spans conflict when they share a word (flat), or only when they cross,
    so that one inside the other is kept (not flat). The kept ones come out by start, equal starts by falling score.
    Raises ValueError on lengths that differ, on a span with start < 0 or end < start, and on NaN scores.
    """
    start_array, end_array = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    score_array, type_array = np.asarray(scores), np.asarray(types)
    shapes = [array.shape for array in (start_array, end_array, type_array, score_array)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"starts, ends, types, scores: wanted four arrays of one length, got shapes {shapes}")
    if start_array.size == 0:
        return np.empty(0, dtype=np.int64)
    if start_array.min() < 0 or (end_array < start_array).any():
        raise ValueError("starts, ends: wanted 0 <= start <= end (end is inclusive), got a span that breaks it")
    if np.isnan(score_array).any():
        raise ValueError("scores: wanted numbers, got NaN, which has no place in an order")

    order = np.argsort(-score_array, kind="stable")
    spans = zip(order.tolist(), start_array[order].tolist(), end_array[order].tolist(), strict=True)
    words = int(end_array.max()) + 1
    kept = _keep_disjoint(spans, words, multi_label) if flat else _keep_uncrossed(spans, words, multi_label)
    result = np.asarray(kept, dtype=np.int64)
    return result[np.argsort(start_array[result], kind="stable")]


def _keep_disjoint(spans: zip[tuple[int, int, int]], words: int, multi_label: bool) -> list[int]:
    """Flat search. Kept spans are equal or disjoint, so a span that was kept before conflicts with nothing else."""
    occupied = bytearray(words)
    taken: set[tuple[int, int]] = set()
    kept = []
    for index, start, end in spans:
        if (start, end) in taken:
            if multi_label:
                kept.append(index)
        elif occupied.find(1, start, end + 1) < 0:
            occupied[start : end + 1] = b"\x01" * (end + 1 - start)
            taken.add((start, end))
            kept.append(index)
    return kept


def _keep_uncrossed(spans: zip[tuple[int, int, int]], words: int, multi_label: bool) -> list[int]:
    """Nested search. A kept span (s, e) crosses (start, end) if start < s <= end < e or s < start <= e < end."""
    farthest_end = [-1] * words  # of the kept spans that start at this word
    nearest_start = [words] * words  # of the kept spans that end at this word
    taken: set[tuple[int, int]] = set()
    kept = []
    for index, start, end in spans:
        if (start, end) in taken:
            if multi_label:
                kept.append(index)
        elif start == end or (max(farthest_end[start + 1 : end + 1]) <= end and min(nearest_start[start:end]) >= start):
            farthest_end[start] = max(farthest_end[start], end)
            nearest_start[end] = min(nearest_start[end], start)
            taken.add((start, end))
            kept.append(index)
    return kept
