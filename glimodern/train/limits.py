"""What a model cannot read of a data set's long texts, as one piece and in windows."""

from collections.abc import Sequence

import numpy as np

from glimodern.data import Dataset, Example
from glimodern.data.report import Cut, CutCounts
from glimodern.inputs.batch import IntArray
from glimodern.inputs.packer import Packer

_BATCH = 256  # sentences tokenised and packed at a time


def own_types(dataset: Dataset, max_types: int) -> list[list[str]]:
    """Return the types that training asks of each sentence whatever it samples: its labels and `types`, in this order.

    They are at most max_types. Sampled types of other sentences make a prompt longer.
    """
    return [
        list(dict.fromkeys([*(label for _, _, label in example.entities), *(example.types or ())]))[:max_types]
        for example in dataset
    ]


def count_cut(dataset: Dataset, types: Sequence[Sequence[str]], packer: Packer) -> Cut:
    """Count what is lost of texts longer than the model reads, with the prompts of `types`, one list a sentence.

    A sentence whose types alone fill the prompt loses all its words. Gold entities that are not asked for, wider than
    max_width or outside their sentence are not counted.
    """
    read, windowed = CutCounts(), CutCounts()
    for first in range(0, len(dataset), _BATCH):
        examples, asked = dataset.examples[first : first + _BATCH], types[first : first + _BATCH]
        for example, labels, cut in zip(examples, asked, _words_cut(examples, asked, packer), strict=True):
            if not cut:
                continue
            spans = _findable(example, labels, packer.max_width)
            kept = len(example.words) - cut
            beyond = max(0, len(example.words) - packer.max_words)
            lost = sum(end >= kept for _, end in spans)
            read = _sum(read, CutCounts(1, beyond, cut - beyond, lost))
            windowed = _sum(windowed, _lost_with_windows(example, labels, spans, packer))
    return Cut(packer.max_words, packer.max_tokens, read, windowed)


def _sum(one: CutCounts, other: CutCounts) -> CutCounts:
    return CutCounts(
        one.texts + other.texts,
        one.words_beyond + other.words_beyond,
        one.words_tokens + other.words_tokens,
        one.entities + other.entities,
    )


def _words_cut(examples: Sequence[Example], types: Sequence[Sequence[str]], packer: Packer) -> list[int]:
    """Return the number of words at each sentence's end that packing leaves out."""
    fits = [not packer.prompt_problem(labels) for labels in types]
    batch = packer.pack(
        [example.words for example, fit in zip(examples, fits, strict=True) if fit],
        [labels for labels, fit in zip(types, fits, strict=True) if fit],
    )
    cut = iter(batch.words_cut)
    return [next(cut) if fit else len(example.words) for example, fit in zip(examples, fits, strict=True)]


def _findable(example: Example, types: Sequence[str], max_width: int) -> list[tuple[int, int]]:
    """Return (first word, last word) of the gold entities that the model could find in a text of any length."""
    asked, words = set(types), len(example.words)
    return [
        (start, end)
        for start, end, label in example.entities
        if label in asked and 0 <= start <= end < min(words, start + max_width)
    ]


def _lost_with_windows(
    example: Example, types: Sequence[str], spans: Sequence[tuple[int, int]], packer: Packer
) -> CutCounts:
    """Count the words and the entities of a text that exceed a window, beside the prompt, by themselves."""
    (bare,) = packer.tokenize([[]])
    # the prompt alone may fill the encoder, which then has no room
    room = np.inf if packer.max_tokens is None else packer.max_tokens - packer.length(bare, packer.prompt(types))
    tokens = _word_tokens(example.words, packer)
    before = np.concatenate([[0], np.cumsum(tokens)])
    too_long = int((tokens > room).sum())
    entities = sum(before[end + 1] - before[start] > room or end - start >= packer.max_words for start, end in spans)
    return CutCounts(int(too_long > 0), 0, too_long, int(entities))


def _word_tokens(words: Sequence[str], packer: Packer) -> IntArray:
    """Return the number of tokens of each word, those beyond max_words too: int64 [words]."""
    counts = []
    step = packer.max_words
    for text in packer.tokenize([words[first : first + step] for first in range(0, len(words), step)]):
        has = np.flatnonzero(text.starts >= 0)
        count = np.zeros(len(text.starts), dtype=np.int64)
        count[has] = np.diff(np.append(text.starts[has], len(text.ids)))
        counts.append(count)
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts])
