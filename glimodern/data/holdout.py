"""Choosing a checkpoint on types that training never sees (more training can lower zero-shot F1: watch for it)."""

import logging
import random
from collections import Counter
from dataclasses import replace

from .example import Dataset, Example

logger = logging.getLogger(__name__)


def hold_out_types(dataset: Dataset, count: int, *, max_sentences: int = 500, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off `count` random types: (training sentences without them, dev sentences asked for them alone).

    Types are drawn among those with at least five mentions (all, where there are too few). Every sentence with a held
    out type, in whatever case it is written, leaves the training set, and no other sentence asks for one; at most
    max_sentences of them form the dev set, each asked for all held-out types. Raises ValueError when no training
    sentence would remain.
    """
    mentions = Counter(label for example in dataset for _, _, label in example.entities)
    candidates = sorted(label for label, number in mentions.items() if number >= 5)
    if len(candidates) <= count:
        candidates = sorted(mentions)
    if len(candidates) <= count:
        raise ValueError(
            f"held_out_types: expected fewer than the {len(candidates)} types of {dataset.name}, got {count}"
        )
    rng = random.Random(seed)
    chosen = rng.sample(candidates, count)
    spelling = {label.casefold(): label for label in chosen}
    asked = tuple(sorted(chosen))
    train: list[Example] = []
    dev: list[Example] = []
    for example in dataset:
        kept = [(start, end, spelling[key]) for start, end, key in _keyed(example) if key in spelling]
        if not kept:
            types = None if example.types is None else tuple(t for t in example.types if t.casefold() not in spelling)
            train.append(replace(example, types=types))
            continue
        dev.append(replace(example, entities=kept, types=asked, group=None))
    if not train:
        raise ValueError(
            f"held_out_types: every sentence of {dataset.name} has one of the {count} types held out; hold out fewer"
        )
    logger.info("held out for choosing the checkpoint: %s; %d sentences have one", ", ".join(asked), len(dev))
    if len(dev) > max_sentences:
        dev = rng.sample(dev, max_sentences)
    return replace(dataset, examples=train, types=[]), Dataset(f"{dataset.name}: held-out types", dev)


def _keyed(example: Example) -> list[tuple[int, int, str]]:
    return [(start, end, label.casefold()) for start, end, label in example.entities]
