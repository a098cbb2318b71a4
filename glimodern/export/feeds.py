"""The inputs of an exported graph, from a packed batch; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimodern.inputs.tokens import PackedArrays, offsets_of

from .layouts import LayoutName

Feed = dict[str, npt.NDArray[Any]]


def feed_of(layout: LayoutName, arrays: PackedArrays, max_width: int | None) -> Feed:
    """Return the inputs of a layout for the texts of a batch. max_width: of spans; None: a token-level model."""
    return _packed(arrays) if layout == "packed" else _padded(arrays, max_width)


def label_feed(labels: Sequence[Sequence[int]]) -> Feed:
    """Return the inputs of the label graph for labels given as token ids."""
    ids = [np.array(label, dtype=np.int64) for label in labels]
    return {"input_ids": np.concatenate(ids), "cu_seqlens": offsets_of([len(label) for label in labels])}


def padded_labels(labels: Sequence[Sequence[int]]) -> Feed:
    """Return the inputs of the layout "padded" for labels given as token ids."""
    lengths = np.array([len(label) for label in labels], dtype=np.int64)
    inside = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.zeros(inside.shape, dtype=np.int64)
    input_ids[inside] = np.concatenate([np.array(label, dtype=np.int64) for label in labels])
    return {"labels_input_ids": input_ids, "labels_attention_mask": inside.astype(np.int64)}


def _packed(arrays: PackedArrays) -> Feed:
    names = ("input_ids", "cu_seqlens", "word_index", "cu_words", "type_index", "cu_types")
    feed: Feed = {name: getattr(arrays, name) for name in names}
    if arrays.subtoken_index is not None and arrays.subtoken_counts is not None:
        words = np.arange(len(arrays.subtoken_counts))
        feed |= {"subtoken_index": arrays.subtoken_index, "subtoken_word": np.repeat(words, arrays.subtoken_counts)}
    return feed


def _padded(arrays: PackedArrays, max_width: int | None) -> Feed:
    first_tokens, first_words = arrays.cu_seqlens.astype(np.int64), arrays.cu_words.astype(np.int64)
    tokens, words = np.diff(first_tokens), np.diff(first_words)
    inside = np.arange(tokens.max()) < tokens[:, None]
    input_ids = np.zeros(inside.shape, dtype=np.int64)
    input_ids[inside] = arrays.input_ids
    numbers = np.arange(first_words[-1]) - np.repeat(first_words[:-1], words) + 1  # of words in their text, from 1
    marked, numbers = _marked(arrays, numbers)
    packed_mask = np.zeros(len(arrays.input_ids), dtype=np.int64)
    packed_mask[marked] = numbers
    words_mask = np.zeros(inside.shape, dtype=np.int64)
    words_mask[inside] = packed_mask
    feed: Feed = {
        "input_ids": input_ids,
        "attention_mask": inside.astype(np.int64),
        "words_mask": words_mask,
        "text_lengths": words[:, None],
    }
    if max_width is not None:
        starts, widths = np.divmod(np.arange(words.max() * max_width), max_width)
        spans = np.stack([starts, starts + widths], axis=1)
        feed["span_idx"] = np.repeat(spans[None], len(words), axis=0)
        feed["span_mask"] = spans[None, :, 1] < words[:, None]
    return feed


def _marked(arrays: PackedArrays, numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the tokens that carry their word's number in words_mask, and these numbers. numbers: of the words."""
    if arrays.subtoken_index is not None and arrays.subtoken_counts is not None:
        return arrays.subtoken_index, np.repeat(numbers, arrays.subtoken_counts)
    present = arrays.word_index >= 0
    return arrays.word_index[present], numbers[present]
