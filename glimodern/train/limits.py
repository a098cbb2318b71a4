"""What is read of long texts: their part up to the model's limits, or windows; and what is lost of a data set."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from glimodern.data import Dataset, Example
from glimodern.data.report import Cut, CutCounts
from glimodern.inference.request import Request
from glimodern.inference.windows import Reading, owners
from glimodern.inputs.labels import LabelSet
from glimodern.inputs.packer import Packer
from glimodern.inputs.tokens import TextTokens

LongTexts = Literal["windows", "cut"]
Budget = int | None
"""Maximum tokens of a text beside its prompt; None: no limit."""

BATCH = 256  # sentences tokenised at a time
_WINDOWS = Reading(long_texts="windows")
_NO_LABELS = LabelSet((), ())


def own_types(dataset: Dataset, max_types: int) -> list[list[str]]:
    """Return the types that training asks of each sentence whatever it samples: its labels and `types`, in this order.

    They are at most max_types. Sampled types of other sentences make a prompt longer.
    """
    return [
        list(dict.fromkeys([*(label for _, _, label in example.entities), *(example.types or ())]))[:max_types]
        for example in dataset
    ]


def prompt_budgets(types: Sequence[Sequence[str]], packer: Packer) -> list[Budget]:
    """Return the budget of each text whose types are asked in one prompt, as in training."""
    return [packer.text_budget(packer.prompt(labels)) for labels in types]


def group_budgets(types: Sequence[Sequence[str]], packer: Packer, max_types: int) -> list[Budget]:
    """Return the budget of each text whose types are asked in groups, as in prediction: beside the longest prompt.

    max_types: see `Reading`.
    """
    reading = Reading(max_types=max_types)
    groups = (packer.label_groups(tuple(labels), reading.group_size(len(labels))) for labels in types)
    return [packer.groups_budget(each) for each in groups]


def tokenize_whole(examples: Sequence[Example], packer: Packer) -> list[TextTokens]:
    """Tokenise all words of texts, those beyond max_words too."""
    most = max((len(example.words) for example in examples), default=0)
    return packer.tokenize([example.words for example in examples], max_words=most)


def read_parts(
    example: Example, text: TextTokens, packer: Packer, budget: Budget, long_texts: LongTexts
) -> list[tuple[int, int]]:
    """Return the parts of a text that are read: (first word, end word), those of prediction with `long_texts`.

    text: all tokens of the text. None of it is read without a budget of at least one token.
    """
    if long_texts == "cut":
        return [(0, _kept(text, packer.max_words, budget))]
    if budget is not None and budget < 1 and len(text.ids):
        return []
    windows, _ = _WINDOWS.windows(Request(example.words, _NO_LABELS), text, packer, budget, 0)
    return windows


def _kept(text: TextTokens, max_words: int, budget: Budget) -> int:
    """Return the number of words that `Packer.pack` keeps of a text."""
    words = min(len(text.starts), max_words)
    if budget is None or text.bounds[words] <= budget:
        return words
    return min(text.words_within(budget), words)


def findable(example: Example, types: Sequence[str], widest: int | None) -> list[tuple[int, int]]:
    """Return (first word, last word) of the gold entities that the model could find in a text of any length.

    widest: `Packer.widest_entity`.
    """
    asked, words = set(types), len(example.words)
    return [
        (start, end)
        for start, end, label in example.entities
        if label in asked and 0 <= start <= end < (words if widest is None else min(words, start + widest))
    ]


def count_lost(spans: Sequence[tuple[int, int]], parts: Sequence[tuple[int, int]]) -> int:
    """Count the spans (first word, last word) that lie whole in no part of a text."""
    if not parts or not spans:
        return len(spans)
    starts, ends = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True))
    return int((owners(starts, ends, parts) < 0).sum())


def count_cut(
    dataset: Dataset,
    types: Sequence[Sequence[str]],
    packer: Packer,
    budgets: Sequence[Budget],
    *,
    window_budgets: Sequence[Budget] | None = None,
    long_texts: LongTexts = "windows",
) -> Cut:
    """Count what is lost of texts longer than the model takes, if they are cut, and in windows.

    types: those asked of each sentence. budgets: of texts that are cut. window_budgets: of texts in windows, if these
    are others. long_texts: what the run does. Gold entities that are not asked for, wider than the model finds or
    outside their sentence are not counted.
    """
    planned = budgets if window_budgets is None else window_budgets
    cut, windowed = CutCounts(), CutCounts()
    for first in range(0, len(dataset), BATCH):
        examples = dataset.examples[first : first + BATCH]
        for i, (example, text) in enumerate(zip(examples, tokenize_whole(examples, packer), strict=True), first):
            spans = findable(example, types[i], packer.widest_entity)
            cut = _sum(cut, _lost(example, text, spans, packer, budgets[i], "cut"))
            windowed = _sum(windowed, _lost(example, text, spans, packer, planned[i], "windows"))
    return Cut(packer.max_words, packer.max_tokens, cut, windowed, long_texts)


def _lost(
    example: Example,
    text: TextTokens,
    spans: Sequence[tuple[int, int]],
    packer: Packer,
    budget: Budget,
    long_texts: LongTexts,
) -> CutCounts:
    """Count what is lost of one text."""
    parts = read_parts(example, text, packer, budget, long_texts)
    words = len(example.words) - max((end for _, end in parts), default=0)
    entities = count_lost(spans, parts)
    if not words and not entities:
        return CutCounts()
    beyond = min(words, max(0, len(example.words) - packer.max_words)) if long_texts == "cut" else 0
    return CutCounts(1, beyond, words - beyond, entities)


def _sum(one: CutCounts, other: CutCounts) -> CutCounts:
    return CutCounts(
        one.texts + other.texts,
        one.words_beyond + other.words_beyond,
        one.words_tokens + other.words_tokens,
        one.entities + other.entities,
    )
