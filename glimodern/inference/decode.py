"""From the candidates of a batch to the entities of its texts, by greedy search.

The results, ties included, are those of the public gliner package (its ``decoding/decoder.py``, 0.2.29,
https://github.com/urchade/GLiNER); tests/test_decode.py runs both side by side. There every candidate is compared with
every span kept so far; here an array over the words answers the same question (ops.select_spans), so the work grows
with candidates x span width, and one search serves a whole batch, as words are numbered in it and no span leaves its
text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimodern.inputs.transfer import to_host
from glimodern.ops import SpanEntities, select_spans

DecodedEntity = tuple[int, int, int, float]
"""First word, last word (inclusive), type, score."""


def decode_batch(
    found: SpanEntities, cu_words: Tensor, cu_types: Tensor, *, flat: bool = True, multi_label: bool = False
) -> dict[int, list[DecodedEntity]]:
    """The entities that `greedy_decode` keeps, of each text that has any: (first word, last word, type, score).

    found: of ops.span_entities, on any device; cu_words, cu_types int32 [texts + 1] on the CPU. Words and types of the
    result count from their text's first, the last word is inclusive; ordered as greedy_decode's. Raises ValueError on a
    NaN score.
    """
    start, width, kind, score = (column.numpy() for column in to_host(found))
    if np.isnan(score).any():
        raise ValueError("scores: expected numbers, got NaN; the model's weights or its input are broken")
    kept = greedy_decode(start, start + width, kind, score, flat=flat, multi_label=multi_label)
    start, width, kind, score = start[kept], width[kept], kind[kept], score[kept]
    text = np.searchsorted(cu_words.numpy(), start, side="right") - 1
    start, kind = start - cu_words.numpy()[text], kind - cu_types.numpy()[text]
    texts: dict[int, list[DecodedEntity]] = {}
    columns = (start, start + width, kind, score)
    for index, *entity in zip(text.tolist(), *(column.tolist() for column in columns), strict=True):
        texts.setdefault(index, []).append(tuple(entity))
    return texts


def greedy_decode(
    starts: npt.ArrayLike,
    ends: npt.ArrayLike,
    types: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    flat: bool = True,
    multi_label: bool = False,
) -> npt.NDArray[np.int64]:
    """Indices of the candidates to keep, in output order.

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
        raise ValueError(f"starts, ends, types, scores: expected four arrays of one length, got shapes {shapes}")
    if start_array.size == 0:
        return np.empty(0, dtype=np.int64)
    if np.isnan(score_array).any():
        raise ValueError("scores: expected numbers, got NaN, which has no place in an order")

    order = np.argsort(-score_array, kind="stable")
    start, end = torch.from_numpy(start_array[order]), torch.from_numpy(end_array[order])
    kept = order[select_spans(start, end, flat=flat, multi_label=multi_label).numpy()]
    result: npt.NDArray[np.int64] = kept[np.argsort(start_array[kept], kind="stable")]
    return result
