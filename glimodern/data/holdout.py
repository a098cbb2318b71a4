"""Held-out entity types for choosing a checkpoint by zero-shot F1, which more training can lower."""

import logging
import random
from collections import Counter
from dataclasses import replace

from .example import Dataset, Example

logger = logging.getLogger(__name__)


def hold_out_types(dataset: Dataset, count: int, *, max_sentences: int = 500, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off `count` random types; return (training sentences without them, dev sentences with only these types).

    Types are drawn from those with at least five mentions, or from all types if there are too few. Every sentence with
    an entity of a held-out type (compared without case) is removed from the training set, and held-out types are
    removed from the `types` of the remaining sentences. At most `max_sentences` of the removed sentences form the dev
    set; each has all held-out types as its `types`. Raises ValueError if there are not more than `count` types, or if
    no training sentence would remain.
    """
    mentions = Counter(label for example in dataset for _, _, label in example.entities)
    candidates = sorted(label for label, number in mentions.items() if number >= 5)
    if len(candidates) <= count:
        candidates = sorted(mentions)
    if len(candidates) <= count:
        raise ValueError(
            f"held_out_types: expected fewer than the {len(candidates)} types of {dataset.name}, got {count}; "
            "hold out fewer"
        )
    rng = random.Random(seed)
    chosen = rng.sample(candidates, count)
    spelling = {label.casefold(): label for label in chosen}
    dev_types = tuple(sorted(chosen))
    train: list[Example] = []
    dev: list[Example] = []
    for example in dataset:
        kept = [(start, end, spelling[key]) for start, end, key in _keyed(example) if key in spelling]
        if not kept:
            types = None if example.types is None else tuple(t for t in example.types if t.casefold() not in spelling)
            train.append(replace(example, types=types))
            continue
        dev.append(replace(example, entities=kept, types=dev_types, group=None))
    if not train:
        raise ValueError(
            f"held_out_types: expected a sentence of {dataset.name} without the {count} types held out, got none; "
            "hold out fewer"
        )
    logger.info("held out for choosing the checkpoint: %s; %d sentences have one", ", ".join(dev_types), len(dev))
    if len(dev) > max_sentences:
        dev = rng.sample(dev, max_sentences)
    return replace(dataset, examples=train, types=[]), Dataset(f"{dataset.name}: held-out types", dev)


def _keyed(example: Example) -> list[tuple[int, int, str]]:
    """Return the example's entities with casefolded labels."""
    return [(start, end, label.casefold()) for start, end, label in example.entities]
