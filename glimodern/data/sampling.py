"""Sampling for training: the entity types of each sentence, and the sentences of each batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from .example import Dataset, Example


def asked_types(dataset: Dataset) -> list[list[str]]:
    """Return the labels to predict for each example.

    They are the example's `types` and gold labels if it has `types`; otherwise all labels of its group (CrossNER's
    domains are groups); otherwise, without a group, all types of the data set.
    """
    by_group: dict[str, set[str]] = {}
    for example in dataset:
        if example.group is not None:
            by_group.setdefault(example.group, set()).update(label for _, _, label in example.entities)
    ordered = {group: sorted(types) for group, types in by_group.items()}

    def types_of(example: Example) -> list[str]:
        if example.types is not None:
            return list(dict.fromkeys([*example.types, *(label for _, _, label in example.entities)]))
        return dataset.types if example.group is None else ordered[example.group]

    return [types_of(example) for example in dataset]


def with_asked_types(dataset: Dataset, limit: int | None = None) -> Dataset:
    """Set the `types` of each example to its `asked_types` if they are at most `limit` (None: always)."""
    examples = [
        replace(example, types=tuple(types)) if limit is None or len(types) <= limit else example
        for example, types in zip(dataset, asked_types(dataset), strict=True)
    ]
    return replace(dataset, examples=examples)


def sample_types(
    batch: Sequence[Example],
    *,
    max_types: int = 25,
    negative_ratio: float,
    shuffle: bool = True,
    drop: float = 0.0,
    count: int | None = None,
    rng: random.Random,
) -> list[list[str]]:
    """Sample the types of each example of a batch; all randomness comes from `rng`.

    count: sample for the first `count` examples only; None: for all.

    The list of an example holds, in this order, its gold labels, its own `types` and its negatives. The negatives are
    sampled for each example from the gold labels and `types` of the other examples. Their number is
    negative_ratio x max(1, number of gold labels), rounded half up, or fewer if the batch has fewer. A type that equals
    one of the example's own up to case and outer white space is never a negative.

    The list is cut to `max_types`; gold labels have priority, and if there are more of them, a random subset is kept.
    Then each type is dropped with probability `drop`, gold ones too, but never the last one, and the list is shuffled
    (`shuffle`). A list is empty only if the example has no types and there is none to sample.
    """
    if max_types < 1:
        raise ValueError(f"max_types: expected at least 1, got {max_types}")
    if not negative_ratio >= 0:
        raise ValueError(f"negative_ratio: expected a number >= 0, got {negative_ratio}")
    if not 0 <= drop < 1:
        raise ValueError(f"drop: expected a probability in [0, 1), got {drop}")
    gold = [list(dict.fromkeys(label for _, _, label in example.entities)) for example in batch]
    own = [list(dict.fromkeys(example.types or ())) for example in batch]
    pool: dict[str, str] = {}
    for labels in (*gold, *own):
        for label in labels:
            pool.setdefault(_key(label), label)
    candidates = list(pool.items())
    sampled = []
    for positives, extra in zip(gold[:count], own[:count], strict=True):
        known = set(positives)
        extra = [label for label in extra if label not in known]
        excluded = {_key(label) for label in (*positives, *extra)}
        others = int(negative_ratio * max(1, len(positives)) + 0.5)
        # larger by the number of excluded types: removing those leaves an unbiased sample of `others` of the rest
        drawn = rng.sample(candidates, min(len(candidates), others + len(excluded)))
        negatives = [label for key, label in drawn if key not in excluded][:others]
        types = _cap(positives, max_types, rng)
        types += _cap(extra, max_types - len(types), rng)
        types += negatives[: max_types - len(types)]
        if drop > 0 and types:
            kept = [label for label in types if rng.random() >= drop]
            types = kept or [rng.choice(types)]
        if shuffle:
            rng.shuffle(types)
        sampled.append(types)
    return sampled


def _key(label: str) -> str:
    return label.strip().casefold()


def _cap(labels: list[str], limit: int, rng: random.Random) -> list[str]:
    """Return the labels, or a random sample of `limit` of them if there are more."""
    return list(labels) if len(labels) <= limit else rng.sample(labels, limit)


def token_batches(
    lengths: Sequence[int],
    *,
    batch_tokens: int | None,
    batch_size: int | None,
    rng: random.Random | None = None,
) -> list[list[int]]:
    """Split the indices of `lengths` into batches; every index is in exactly one.

    A batch takes consecutive items, in order or in an order shuffled by `rng`, while their lengths sum to at most
    `batch_tokens` and their number is at most `batch_size` (None: no such limit; at least one is required). An item
    longer than `batch_tokens` forms a batch of its own. Raises ValueError for a limit below 1 or a negative length.
    """
    if batch_tokens is None and batch_size is None:
        raise ValueError("batch_tokens, batch_size: expected a limit for at least one, got None for both; set one")
    for name, limit in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}: expected at least 1 or None, got {limit}")
    order = list(range(len(lengths)))
    if rng is not None:
        rng.shuffle(order)
    batches: list[list[int]] = []
    current: list[int] = []
    tokens = 0
    for index in order:
        length = lengths[index]
        if length < 0:
            raise ValueError(f"lengths: expected numbers >= 0, got {length} at index {index}")
        over_tokens = batch_tokens is not None and tokens + length > batch_tokens
        over_size = batch_size is not None and len(current) >= batch_size
        if current and (over_tokens or over_size):
            batches.append(current)
            current, tokens = [], 0
        current.append(index)
        tokens += length
    if current:
        batches.append(current)
    return batches
