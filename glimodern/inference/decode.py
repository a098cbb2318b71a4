"""Greedy decoding of a batch's candidate spans into the entities of its texts.

The results, ties included, equal those of the public gliner package (its ``decoding/decoder.py``, 0.2.29,
https://github.com/urchade/GLiNER); tests/test_decode.py compares both. gliner compares every candidate with every span
kept so far. Here an array over the words (ops.select_spans) answers the same question in time proportional to
candidates x span width. One search serves a whole batch, because words are numbered over the batch and no span leaves
its text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimodern.inputs.transfer import to_host
from glimodern.ops import SpanEntities, select_spans

DecodedEntity = tuple[int, int, int, float]
"""First word, last word (inclusive), type_id, score."""


def decode_batch(
    candidates: SpanEntities, cu_words: Tensor, cu_types: Tensor, *, flat: bool = True, multi_label: bool = False
) -> dict[int, list[DecodedEntity]]:
    """Decode a batch's candidates with `greedy_decode` and group the kept ones by text.

    candidates: from ops.span_entities, on any device. cu_words, cu_types: int32 [texts + 1] on the CPU.
    Returns {text index: entities} for the texts with entities. Words and type_ids are numbered from 0 in each text, the
    last word is inclusive, and the order is that of `greedy_decode`. Raises ValueError on a NaN score.
    """
    start, width, type_id, score = (column.numpy() for column in to_host(candidates))
    if np.isnan(score).any():
        raise ValueError("scores: expected numbers, got NaN; the model's weights or its input are broken")
    kept = greedy_decode(start, start + width, type_id, score, flat=flat, multi_label=multi_label)
    start, width, type_id, score = start[kept], width[kept], type_id[kept], score[kept]
    text = np.searchsorted(cu_words.numpy(), start, side="right") - 1
    start, type_id = start - cu_words.numpy()[text], type_id - cu_types.numpy()[text]
    texts: dict[int, list[DecodedEntity]] = {}
    columns = (start, start + width, type_id, score)
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
    start, end = torch.from_numpy(start_array[order]), torch.from_numpy(end_array[order])
    kept = order[select_spans(start, end, flat=flat, multi_label=multi_label).numpy()]
    result: npt.NDArray[np.int64] = kept[np.argsort(start_array[kept], kind="stable")]
    return result
