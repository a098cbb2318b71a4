"""The windows of long training texts, and the tokens of a text beside the prompt that training may ask of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from glimodern.data import Dataset, Example
from glimodern.inputs.packer import Packer
from glimodern.inputs.tokens import TextTokens

from .config import DataConfig
from .limits import BATCH, Budget, read_parts, tokenize_whole


class Windowed(NamedTuple):
    """A data set whose long texts are replaced by their windows.

    tokens: of each example. budgets: of each example.
    """

    dataset: Dataset
    tokens: list[int]
    budgets: list[Budget]


def training_budgets(dataset: Dataset, packer: Packer, data: DataConfig) -> list[Budget]:
    """Return the maximum tokens of each text in training.

    They leave room for a prompt of the text's own types and of as many negatives (types of other sentences) as it may
    be asked. Own types count exactly. Negatives count by the mean number of tokens of the data set's types, with three
    standard deviations: `TrainingBatches` drops negatives that need more. A prompt has at most half of the encoder's
    tokens, as in prediction, unless a text's own types need more.
    """
    empty = packer.text_budget(packer.prompt([]))
    if empty is None or not packer.asks_in_text or packer.max_tokens is None:
        return [empty] * len(dataset)
    lengths = packer.label_lengths(dataset.types).astype(np.int64)
    sizes = dict(zip(dataset.types, lengths.tolist(), strict=True))
    longest = np.concatenate([[0], np.cumsum(np.sort(lengths)[::-1])])
    half = packer.max_tokens // 2 - len(packer.prompt([]).ids)
    budgets: list[Budget] = []
    for example in dataset:
        gold = {label for _, _, label in example.entities}
        types = gold | set(example.types or ())
        own = sum(sorted(sizes[label] for label in types)[-data.max_types :])
        count = min(int(data.negative_ratio * max(1, len(gold)) + 0.5), max(data.max_types - len(types), 0))
        count = min(count, len(sizes))
        likely = math.ceil(count * lengths.mean() + 3 * math.sqrt(count) * lengths.std()) if count else 0
        budgets.append(empty - max(own, min(own + min(likely, int(longest[count])), half)))
    return budgets


def windowed(dataset: Dataset, packer: Packer, budgets: Sequence[Budget]) -> Windowed:
    """Replace each text that is longer than its budget, or than max_words, by its windows, in place of the text.

    The windows are those of prediction, so each gold span of at most max_width words lies in one of them, or in two. A
    window has the gold spans that lie whole in it, and the id, the types and the group of its text.
    """
    examples: list[Example] = []
    tokens: list[int] = []
    kept_budgets: list[Budget] = []
    for first in range(0, len(dataset), BATCH):
        batch = dataset.examples[first : first + BATCH]
        for i, (example, text) in enumerate(zip(batch, tokenize_whole(batch, packer), strict=True), first):
            for part, count in _parts(example, text, packer, budgets[i]):
                examples.append(part)
                tokens.append(count)
                kept_budgets.append(budgets[i])
    if len(examples) == len(dataset):
        return Windowed(dataset, tokens, kept_budgets)
    return Windowed(replace(dataset, examples=examples), tokens, kept_budgets)


def _parts(example: Example, text: TextTokens, packer: Packer, budget: Budget) -> Iterator[tuple[Example, int]]:
    """Yield the windows of a text as examples, each with its number of tokens."""
    windows = read_parts(example, text, packer, budget, "windows")
    if len(windows) < 2:
        yield example, len(text.ids)
        return
    bounds = text.bounds
    for first, end in windows:
        part = replace(
            example,
            words=example.words[first:end],
            entities=[(s - first, e - first, label) for s, e, label in example.entities if first <= s and e < end],
            offsets=None if example.offsets is None else example.offsets[first:end],
        )
        yield part, int(bounds[end] - bounds[first])
