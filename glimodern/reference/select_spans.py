"""The oracle of select_spans: a greedy search, one candidate after the other."""

import torch
from torch import Tensor


def select_spans(start: Tensor, end: Tensor, *, flat: bool, multi_label: bool) -> Tensor:
    """Indices, ascending, of the candidates that conflict with none kept before; see ops.select_spans."""
    spans = list(enumerate(zip(start.tolist(), end.tolist(), strict=True)))
    words = int(end.max()) + 1 if len(spans) else 0
    kept = _disjoint(spans, words, multi_label) if flat else _uncrossed(spans, words, multi_label)
    return torch.tensor(kept, dtype=torch.int64, device="cpu")


def _disjoint(spans: list[tuple[int, tuple[int, int]]], words: int, multi_label: bool) -> list[int]:
    """Kept spans are equal or disjoint, so a candidate equal to a kept span conflicts with no other."""
    occupied = bytearray(words)
    taken: set[tuple[int, int]] = set()
    kept = []
    for index, (start, end) in spans:
        if (start, end) in taken:
            if multi_label:
                kept.append(index)
        elif occupied.find(1, start, end + 1) < 0:
            occupied[start : end + 1] = b"\x01" * (end + 1 - start)
            taken.add((start, end))
            kept.append(index)
    return kept


def _uncrossed(spans: list[tuple[int, tuple[int, int]]], words: int, multi_label: bool) -> list[int]:
    """A kept span (s, e) crosses (start, end) if start < s <= end < e or s < start <= e < end."""
    max_end = [-1] * words  # over the kept spans that start at this word
    min_start = [words] * words  # over the kept spans that end at this word
    taken: set[tuple[int, int]] = set()
    kept = []
    for index, (start, end) in spans:
        if (start, end) in taken:
            if multi_label:
                kept.append(index)
        elif start == end or (max(max_end[start + 1 : end + 1]) <= end and min(min_start[start:end]) >= start):
            max_end[start] = max(max_end[start], end)
            min_start[end] = min(min_start[end], start)
            taken.add((start, end))
            kept.append(index)
    return kept
