"""Exact-match evaluation of a model on data sets: `python -m glimodern.evaluate MODEL --data SOURCE ...`.

What is asked of a sentence says data.asked_types. Gold spans that the model cannot give (wider than max_width, or cut
off) stay in the gold and count as missed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from glimodern.data import Dataset, asked_types, load_split, with_asked_types
from glimodern.metrics import Scores, score
from glimodern.model import GLiModern


def evaluate(model: GLiModern, dataset: Dataset, *, threshold: float = 0.5, batch_tokens: int | str = "auto") -> Scores:
    """Flat prediction at one threshold, scored by exact match (see metrics.score); groups are reported apart."""
    asked = asked_types(dataset)
    words = (example.words for example in dataset)
    found = model.predict_words(words, asked, threshold=threshold, batch_tokens=batch_tokens)
    gold = [example.entities for example in dataset]
    predicted = [[(start, end, label) for start, end, label, _ in text.entities] for text in found]
    groups = [example.group for example in dataset]
    return score(gold, predicted, groups=groups if any(groups) else None)


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `python -m glimodern.evaluate`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    data: tuple[str, ...]
    """Files, folders or hub data sets."""
    split: str | None = "test"
    """Split to read from folders that have splits."""
    threshold: float = 0.5
    """Least probability of an entity."""
    max_sentences: int | None = None
    """Only the first so many sentences of each data set, and of each group in it."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Arithmetic of the model."""
    device: str = "cpu"
    """Device to run on."""
    batch_tokens: int | Literal["auto"] = "auto"
    """Tokens in a batch; auto: what suits the device."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    json: str | None = None
    """Write the scores to this file."""


def first_sentences(dataset: Dataset, count: int) -> Dataset:
    """The first `count` sentences of each group (of the whole where there are no groups); `types` stay as they are."""
    seen: dict[str | None, int] = {}
    kept = []
    for example in dataset:
        seen[example.group] = seen.get(example.group, 0) + 1
        if seen[example.group] <= count:
            kept.append(example)
    return replace(dataset, examples=kept)


def main(arguments: Sequence[str] | None = None) -> None:
    from rich.console import Console

    config = tyro.cli(
        Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.evaluate"
    )
    if not config.data:
        raise ValueError("--data: wanted at least one file, folder or hub data set, got none")
    console = Console()
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    results = {}
    for source in config.data:
        dataset = with_asked_types(load_split(source, config.split, skip_bad_rows=config.skip_bad_rows))
        if config.max_sentences is not None:
            dataset = first_sentences(dataset, config.max_sentences)
        scores = evaluate(model, dataset, threshold=config.threshold, batch_tokens=config.batch_tokens)
        console.print(scores.table(f"{dataset.name}: {len(dataset)} sentences, threshold {config.threshold}"))
        results[source] = scores.to_dict()
    average = sum(result["micro"]["f1"] for result in results.values()) / len(results)
    if len(results) > 1:
        console.print(f"mean micro F1 of {len(results)} data sets: {100 * average:.1f}")
    if config.json is not None:
        report = {"model": config.model, "threshold": config.threshold, "mean_micro_f1": average, "data": results}
        Path(config.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
