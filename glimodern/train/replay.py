"""Replay: sentences of other data, with the entities that the checkpoint itself finds in them as gold.

What a model found before fine-tuning is trained on together with the new data, so that it still finds it afterwards
(learning without forgetting, https://arxiv.org/abs/1606.09282, with entities in place of probabilities).
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

from glimodern.data import Dataset, asked_types, load_split
from glimodern.evaluate import predict_gold_labels
from glimodern.model.glimodern import GLiModern

from .config import TrainConfig

logger = logging.getLogger(__name__)


def replayed(config: TrainConfig, model: GLiModern, size: int) -> Dataset:
    """Return sentences of replay_data with the model's own entities, replay_ratio for each of `size` sentences.

    A sentence is asked the types that its data set would be evaluated on, at most max_types of them, chosen by the
    seed. Raises ValueError for data without types to ask.
    """
    tuning, data, run = config.tuning, config.data, config.run
    splitter = model.config.words_splitter_type
    rng = random.Random(f"{run.seed} replay")
    asked = []
    for source in tuning.replay_data:
        dataset = load_split(source, "train", skip_bad_rows=data.skip_bad_rows, splitter=splitter)
        if not dataset.types:
            raise ValueError(
                f"replay_data: expected types to ask the model for, got none in {source}; give each row its `types`"
            )
        asked += list(zip(dataset, asked_types(dataset), strict=True))
    chosen = rng.sample(asked, min(round(tuning.replay_ratio * size), len(asked)))
    examples = [example for example, _ in chosen]
    label_sets = [_at_most(types, data.max_types, rng) for _, types in chosen]
    dataset = Dataset("replay", examples)
    found = predict_gold_labels(model, dataset, label_sets, threshold=run.threshold, long_texts=data.long_texts)
    logger.info("replay: %d sentences, in which the model finds %d entities", len(chosen), sum(map(len, found)))
    replaced = [
        replace(example, entities=entities, types=tuple(labels), group=None)
        for example, entities, labels in zip(examples, found, label_sets, strict=True)
    ]
    return Dataset("replay", replaced)


def _at_most(types: Sequence[str], limit: int, rng: random.Random) -> list[str]:
    return list(types) if len(types) <= limit else rng.sample(list(types), limit)
