"""Greedy decoding of candidate spans into the entities of texts.

The results, ties included, equal those of the public gliner package (its ``decoding/decoder.py``, 0.2.29,
https://github.com/urchade/GLiNER); tests/test_decode.py compares both. gliner compares every candidate with every span
kept so far. Here an array over the words (`Select`) answers the same question in time proportional to
candidates x span width. One search serves many texts, because words are numbered over all of them and no span leaves
its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .windows import IntArray, owners

DecodedEntity = tuple[int, int, int, float]
"""First word, last word (inclusive), type_id, score."""

Ties = Literal["span", "type"]
"""The order of candidates with equal scores: by start, end and type ("span"), or by start, type and end ("type")."""
Select = Callable[[IntArray, IntArray, bool, bool], IntArray]
"""Maps (start, end, flat, multi_label) to the candidates that a greedy search keeps, as `ops.select_spans` does."""


def select_by_kernel(start: IntArray, end: IntArray, flat: bool, multi_label: bool) -> IntArray:
    """Select by `ops.select_spans`. It alone imports torch here: a search in pure Python needs none."""
    import torch

    from glimodern.ops import select_spans

    kept = select_spans(torch.from_numpy(start), torch.from_numpy(end), flat=flat, multi_label=multi_label)
    return kept.numpy()


class Candidates(NamedTuple):
    """Candidates of a batch on the CPU, columns of one length; see `ops.SpanEntities`."""

    word: npt.ArrayLike
    width: npt.ArrayLike
    type: npt.ArrayLike
    score: npt.ArrayLike


class TextSpans(NamedTuple):
    """Candidate spans of texts, columns of one length.

    request: the text. window: the window of the text that scored the span. start, end: words of the text, both
    inclusive. type_id: index of the label in the text's label set. All int64. score: probability, fp32 or fp64.
    """

    request: IntArray
    window: IntArray
    start: IntArray
    end: IntArray
    type_id: IntArray
    score: npt.NDArray[np.floating[Any]]

    def rows(self, index: npt.NDArray[Any]) -> TextSpans:
        """Return the spans of an index or a mask."""
        return TextSpans(*(column[index] for column in self))


def text_spans(
    candidates: Sequence[npt.ArrayLike],
    cu_words: npt.ArrayLike,
    cu_types: npt.ArrayLike,
    places: Sequence[tuple[int, int, int, int]] | None = None,
) -> TextSpans:
    """Number a batch's candidates by text, window, words and labels.

    candidates: `Candidates`, arrays or tensors on the CPU. cu_words, cu_types: int32 [rows + 1], of the batch.
    places: (text, window, first word in the text, first label in the label set) of each row of the batch; None: row i
    is text i, whole, with all its labels.

    Raises ValueError on a NaN score.
    """
    word, width, type_id, score = map(np.asarray, candidates)
    first_words, first_types = np.asarray(cu_words), np.asarray(cu_types)
    check_numbers(score)
    row = np.searchsorted(first_words, word, side="right") - 1
    start, type_id = word - first_words[row], type_id - first_types[row]
    if places is None:
        return TextSpans(row, np.zeros_like(row), start, start + width, type_id, score)
    request, window, first_word, first_type = np.array(places, dtype=np.int64).reshape(-1, 4)[row].T
    return TextSpans(request, window, start + first_word, start + first_word + width, type_id + first_type, score)


def check_numbers(scores: npt.NDArray[Any]) -> None:
    """Raise ValueError if a score is NaN."""
    if np.isnan(scores).any():
        raise ValueError("scores: expected numbers, got NaN; the model's weights or its input are broken")


def decode_texts(
    found: Sequence[TextSpans],
    words: Sequence[int],
    windows: Sequence[Sequence[tuple[int, int]]] | None = None,
    *,
    ties: Ties = "span",
    select: Select = select_by_kernel,
    flat: bool = True,
    multi_label: bool = False,
    top_k: int | None = None,
) -> dict[int, list[DecodedEntity]]:
    """Find the entities of texts among their candidates, by one search over all windows of all texts.

    found: candidates in any order; those of texts beyond `words` are ignored. words: number of words of each text.
    windows: of each text; None: each was read whole. A span counts in the window that owns it (`windows.owners`) alone.
    ties: which of two candidates with equal scores comes first, see `Ties`.
    top_k: most entities of a text, those with the highest scores; None: all.

    Returns {text: entities} for the texts with entities, in the order of `greedy_decode`.
    """
    if not found:
        return {}
    spans = TextSpans(*(np.concatenate(column) for column in zip(*found, strict=True)))
    last_keys = (spans.type_id, spans.end) if ties == "span" else (spans.end, spans.type_id)
    spans = spans.rows(np.lexsort((*last_keys, spans.start, spans.request)))
    bounds = np.searchsorted(spans.request, np.arange(len(words) + 1))
    counted = np.arange(len(spans.request)) < bounds[-1]
    for text, (first, end) in enumerate(pairwise(bounds)):
        if windows is not None and len(windows[text]) > 1 and end > first:
            owner = owners(spans.start[first:end], spans.end[first:end], windows[text])
            counted[first:end] = spans.window[first:end] == owner
    spans = spans.rows(counted)
    offset = np.concatenate([[0], np.cumsum(words)])[spans.request]
    columns = (spans.start + offset, spans.end + offset, spans.type_id, spans.score)
    kept = greedy_decode(*columns, select=select, flat=flat, multi_label=multi_label)
    spans = spans.rows(kept)
    texts: dict[int, list[DecodedEntity]] = {}
    found_columns = (spans.start, spans.end, spans.type_id, spans.score)
    for text, *entity in zip(spans.request.tolist(), *(column.tolist() for column in found_columns), strict=True):
        texts.setdefault(text, []).append(tuple(entity))
    if top_k is not None:
        texts = {text: _highest(entities, top_k) for text, entities in texts.items()}
    return texts


def _highest(entities: list[DecodedEntity], count: int) -> list[DecodedEntity]:
    """Return the `count` entities with the highest scores, of equal scores the first ones, in their order."""
    kept = sorted(sorted(range(len(entities)), key=lambda i: -entities[i][3])[:count])
    return [entities[i] for i in kept]


def greedy_decode(
    starts: npt.ArrayLike,
    ends: npt.ArrayLike,
    types: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    select: Select = select_by_kernel,
    flat: bool = True,
    multi_label: bool = False,
) -> npt.NDArray[np.int64]:
    """Select candidate spans greedily by score and return the indices of those kept, in output order.

    starts, ends: word indices, ends inclusive. types: type_ids. All four arrays have shape [count].
    Candidates are visited by decreasing score, equal scores in the given order. A candidate is dropped if it conflicts
    with one already kept. Two candidates with the same words conflict unless `multi_label`, whatever their types.
    Different spans conflict if they share a word (`flat`), or only if they cross (not `flat`; nested spans are kept).
    The result is ordered by start, equal starts by decreasing score.
    Raises ValueError on unequal lengths, on a span with start < 0 or end < start, and on NaN scores.
    """
    start_array, end_array = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    score_array, type_array = np.asarray(scores), np.asarray(types)
    shapes = [array.shape for array in (start_array, end_array, type_array, score_array)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"starts, ends, types, scores: expected four arrays of one length, got shapes {shapes}")
    if start_array.size == 0:
        return np.empty(0, dtype=np.int64)
    if np.isnan(score_array).any():
        raise ValueError("scores: expected numbers, got NaN, which cannot be ordered; remove such candidates")

    order = np.argsort(-score_array, kind="stable")
    kept = order[select(start_array[order], end_array[order], flat, multi_label)]
    result: npt.NDArray[np.int64] = kept[np.argsort(start_array[kept], kind="stable")]
    return result
