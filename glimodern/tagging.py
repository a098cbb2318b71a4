"""Candidate entities in the start, end and inside probabilities of words: the search of `ops.token_entities`.

In NumPy alone, so that an exported model searches by the same code without torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


class LeastOfRange:
    """The least of rows first..last of an array [rows, ...], for many ranges: a table of the least of 2^k rows.

    It takes n log2(longest) time and memory to make, and two look-ups a range. NaN is the least of all.
    """

    def __init__(self, values: Floats, longest: int) -> None:
        self.levels = [values]
        while 2 ** len(self.levels) <= longest:
            half, last = 2 ** (len(self.levels) - 1), self.levels[-1]
            self.levels.append(np.minimum(last[: len(last) - half], last[half:]))

    def __call__(self, first: Ints, last: Ints) -> Floats:
        """Return the least of each range, [ranges, ...]. first, last: int64 [ranges], both inclusive."""
        level = np.frexp(last - first + 1)[1] - 1  # floor of log2
        least = np.empty((len(first), *self.levels[0].shape[1:]), dtype=self.levels[0].dtype)
        for k, table in enumerate(self.levels):
            chosen = level == k
            least[chosen] = np.minimum(table[first[chosen]], table[last[chosen] + 1 - 2**k])
        return least


def least_of_spans(probabilities: Floats, spans: Ints) -> Floats:
    """Return the score of given spans and each type: the least of start, end and inside, [spans, types].

    probabilities: of a text, [words, types, 3]. spans: int64 [spans, 2], rows (first word, width - 1).
    """
    if not len(spans):
        return np.zeros((0, probabilities.shape[1]), dtype=probabilities.dtype)
    first, last = spans[:, 0], spans.sum(1)
    inside = LeastOfRange(probabilities[..., 2], int(spans[:, 1].max()) + 1)(first, last)
    least: Floats = np.minimum(inside, np.minimum(probabilities[first, :, 0], probabilities[last, :, 1]))
    return least


class Columns:
    """The pairs of a batch in the order (type, word): for each type one column of its text's words.

    order: the pair of `token_scores` at each place. word, type: of each place, counted in the batch. end: the place
    after each place's column. All int64 [pairs].
    """

    def __init__(self, words: Ints, types: Ints) -> None:
        lengths = np.repeat(words, types).astype(np.int64)  # of each column
        text = np.repeat(np.arange(len(words)), types)
        first_word = np.cumsum(words) - words
        first_pair = np.cumsum(words * types) - words * types
        in_text = np.arange(len(text)) - (np.cumsum(types) - types)[text]
        ends = np.cumsum(lengths)
        self.pairs = int(lengths.sum())
        self.type = np.repeat(np.arange(len(text)), lengths)
        place = np.arange(self.pairs) - (ends - lengths)[self.type]
        self.word = first_word[text][self.type] + place
        self.order = first_pair[text][self.type] + place * types[text][self.type] + in_text[self.type]
        self.end = ends[self.type]


def tagged_entities(probabilities: Floats, limits: Floats, columns: Columns) -> tuple[Ints, Ints, Ints, Floats]:
    """Return the candidates of a batch, columns (word, width - 1, type, score) ordered by (text, word, type, width).

    probabilities: start, end and inside of every pair, [pairs, 3], in the order of `Columns.order`. limits: thresholds
    of the types, fp32 [m]. Words and types count in the batch.
    """
    first, last, least = _spans_above(probabilities, limits[columns.type], columns)
    word, type_id = columns.word[first], columns.type[first]
    order = np.lexsort((last - first, type_id, word))
    return word[order], (last - first)[order], type_id[order], least[order]


def _spans_above(scores: Floats, limits: Floats, columns: Columns) -> tuple[Ints, Ints, Floats]:
    """First and last place of each candidate, and its score. scores: [pairs, 3]. limits: fp32 [pairs]."""
    start, end, inside = scores.T
    broken = np.flatnonzero(np.isnan(scores).any(1))
    ends = np.flatnonzero(end > limits)
    begins = np.flatnonzero((start > limits) & (inside >= limits))
    # the first place from each on that is not inside, or in another column
    outside = np.append(np.flatnonzero(~(inside >= limits)), columns.pairs)
    stop = np.minimum(outside[np.searchsorted(outside, begins)], columns.end[begins])
    first_end, count = np.searchsorted(ends, begins), np.searchsorted(ends, stop)
    count = count - first_end
    first = np.repeat(begins, count)
    last = ends[np.repeat(first_end, count) + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)]
    longest = int((last - first).max(initial=0)) + 1
    least = np.minimum(LeastOfRange(inside, longest)(first, last), np.minimum(start[first], end[last]))
    nan = np.full(len(broken), np.nan, dtype=scores.dtype)
    return np.concatenate([first, broken]), np.concatenate([last, broken]), np.concatenate([least, nan])
