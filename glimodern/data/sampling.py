"""What a training step sees: the types asked of each sentence, and the sentences of each batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from .example import Dataset, Example


def asked_types(dataset: Dataset) -> list[list[str]]:
    """The labels to ask of each example: its own `types` and gold labels if it has `types`, else all types of its
    group, or of the data set where it has no group (CrossNER's domains are groups, each asked for its own types)."""
    by_group: dict[str, set[str]] = {}
    for example in dataset:
        if example.group is not None:
            by_group.setdefault(example.group, set()).update(label for _, _, label in example.entities)
    ordered = {group: sorted(types) for group, types in by_group.items()}

    def asked(example: Example) -> list[str]:
        if example.types is not None:
            return list(dict.fromkeys([*example.types, *(label for _, _, label in example.entities)]))
        return dataset.types if example.group is None else ordered[example.group]

    return [asked(example) for example in dataset]


def with_asked_types(dataset: Dataset, limit: int | None = None) -> Dataset:
    """The same examples with `types` filled in by asked_types, where they are at most `limit` (None: always)."""
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
    rng: random.Random,
) -> list[list[str]]:
    """The types to ask of each example of a batch; seeded by `rng`.

    An example's list holds its gold labels, then its own `types`, then negatives: a random choice, its own for every
    example, of negative_ratio x max(1, number of gold labels) types (rounded half up; fewer if the batch has fewer)
    from the gold labels and `types` of the other examples. A type equal to one of its own but for case and outer white
    space is never a negative. At most `max_types` remain, gold first; of more gold labels than that, a random choice.
    Then each type is dropped with probability `drop` (its gold entities are not asked for), but never the last one, and
    the list is shuffled. A list is empty only if there is no type to ask: no own one and none to sample.
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
    asked = []
    for positives, extra in zip(gold, own, strict=True):
        known = set(positives)
        extra = [label for label in extra if label not in known]
        taken = {_key(label) for label in (*positives, *extra)}
        wanted = int(negative_ratio * max(1, len(positives)) + 0.5)
        # A sample with room for every type that must not be in it leaves a fair sample of the others.
        drawn = rng.sample(candidates, min(len(candidates), wanted + len(taken)))
        negatives = [label for key, label in drawn if key not in taken][:wanted]
        types = _cap(positives, max_types, rng)
        types += _cap(extra, max_types - len(types), rng)
        types += negatives[: max_types - len(types)]
        if drop > 0 and types:
            kept = [label for label in types if rng.random() >= drop]
            types = kept or [rng.choice(types)]
        if shuffle:
            rng.shuffle(types)
        asked.append(types)
    return asked


def _key(label: str) -> str:
    return label.strip().casefold()


def _cap(labels: list[str], limit: int, rng: random.Random) -> list[str]:
    return list(labels) if len(labels) <= limit else rng.sample(labels, limit)


def token_batches(
    lengths: Sequence[int],
    *,
    batch_tokens: int | None,
    batch_size: int | None,
    rng: random.Random | None = None,
) -> list[list[int]]:
    """Indices into `lengths`, every one once, in batches.

    A batch takes the next items, in order or in an order shuffled by `rng`, as long as their lengths sum to at most
    `batch_tokens` and their number is at most `batch_size` (None: no such limit; one of the two is needed). An item
    longer than `batch_tokens` is a batch of its own.
    """
    if batch_tokens is None and batch_size is None:
        raise ValueError("batch_tokens, batch_size: expected a limit in at least one, got None for both")
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
