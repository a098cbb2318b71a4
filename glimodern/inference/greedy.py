"""The greedy choice of spans in pure Python, for predictors without torch."""

from __future__ import annotations

import numpy as np

from .windows import IntArray


def select_in_python(start: IntArray, end: IntArray, flat: bool, multi_label: bool) -> IntArray:
    """Return the indices of the candidates that conflict with none kept before; see `decode.Select`.

    Kept spans never cross, and under `flat` they share no word. So it is enough to know, at each word, the end of the
    longest kept span that starts there and the start of the longest that ends there; and under `flat`, which words are
    taken.
    """
    words = int(end.max(initial=-1)) + 1
    longest_end, longest_start = [-1] * words, [words] * words
    taken = bytearray(words)
    spans: set[tuple[int, int]] = set()
    kept = []
    for index, (first, last) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        if (first, last) in spans:
            if multi_label:
                kept.append(index)
            continue
        if flat:
            conflicts = taken.find(1, first, last + 1) >= 0
        else:
            inner = range(first + 1, last + 1)
            conflicts = any(longest_end[i] > last or longest_start[i - 1] < first for i in inner)
        if conflicts:
            continue
        taken[first : last + 1] = b"\x01" * (last + 1 - first)
        longest_end[first], longest_start[last] = max(longest_end[first], last), min(longest_start[last], first)
        spans.add((first, last))
        kept.append(index)
    return np.array(kept, dtype=np.int64)
