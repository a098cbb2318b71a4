"""token_entities: the candidate entities in the start, end and inside logits of `token_scores`; runs on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._check import text_offsets
from ._span_entities import SpanEntities, check_range, check_threshold, probabilities

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


def token_entities(logits: Tensor, cu_words: Tensor, cu_types: Tensor, threshold: float | Tensor) -> SpanEntities:
    """Candidate entities from start, end and inside logits: those whose least probability is above a threshold.

    logits: [pairs, 3] of `token_scores`, on any device. cu_words, cu_types: int32 [texts + 1]. threshold: a probability
    in [0, 1], or a float tensor [m] of one per type.

    An entity of a type begins at a word with start > threshold and ends at a word with end > threshold; inside >=
    threshold in all of its words. Its score is the least of all these probabilities. It may have any number of words.

    Returns SpanEntities on the CPU, ordered by (text, word, type, width); no gradients. These are the candidates of
    gliner 0.2.29, whose ties between equal scores go by that order. A NaN logit is a candidate of one word with the
    score NaN. Time grows with the pairs and with the candidates, not with their words.

    Raises ValueError for logits of another shape, bad offsets, and a threshold outside [0, 1].
    """
    words, types = cu_words.tolist(), cu_types.tolist()
    text_offsets("cu_words", words, words[-1])
    text_offsets("cu_types", types, types[-1])
    columns = Columns(np.diff(words), np.diff(types))
    if logits.shape != (columns.pairs, 3):
        raise ValueError(
            f"logits: expected [{columns.pairs}, 3], which cu_words and cu_types make, got {tuple(logits.shape)}"
        )
    number, per_type = check_threshold(threshold, types[-1], logits.device)
    if per_type is not None:
        check_range(per_type)
    limits = np.full(types[-1], number, dtype=np.float32) if per_type is None else per_type.cpu().numpy()
    scores = probabilities(logits.detach().flatten()).cpu().view(-1, 3).numpy()[columns.order]
    first, last, least = _candidates(scores, limits[columns.type], columns)
    word, type_id = columns.word[first], columns.type[first]
    order = np.lexsort((last - first, type_id, word))
    columns_found = (word[order], (last - first)[order], type_id[order], least[order])
    word_column, width, type_column, score = (torch.from_numpy(column) for column in columns_found)
    return SpanEntities(word_column, width, type_column, score)


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


def _candidates(scores: Floats, limits: Floats, columns: Columns) -> tuple[Ints, Ints, Floats]:
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
