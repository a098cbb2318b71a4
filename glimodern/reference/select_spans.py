"""Greedy search over spans, one after the other."""

import torch
from torch import Tensor


def select_spans(start: Tensor, end: Tensor, *, flat: bool, multi_label: bool) -> Tensor:
    """Numbers, rising, of the candidates that conflict with none taken before; see ops.select_spans."""
    spans = list(enumerate(zip(start.tolist(), end.tolist(), strict=True)))
    words = int(end.max()) + 1 if len(spans) else 0
    kept = _disjoint(spans, words, multi_label) if flat else _uncrossed(spans, words, multi_label)
    return torch.tensor(kept, dtype=torch.int64, device="cpu")


def _disjoint(spans: list[tuple[int, tuple[int, int]]], words: int, multi_label: bool) -> list[int]:
    """Kept spans are equal or disjoint, so a span that was kept before conflicts with nothing else."""
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
    farthest_end = [-1] * words  # of the kept spans that start at this word
    nearest_start = [words] * words  # of the kept spans that end at this word
    taken: set[tuple[int, int]] = set()
    kept = []
    for index, (start, end) in spans:
        if (start, end) in taken:
            if multi_label:
                kept.append(index)
        elif start == end or (max(farthest_end[start + 1 : end + 1]) <= end and min(nearest_start[start:end]) >= start):
            farthest_end[start] = max(farthest_end[start], end)
            nearest_start[end] = min(nearest_start[end], start)
            taken.add((start, end))
            kept.append(index)
    return kept
