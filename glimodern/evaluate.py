"""Exact-match evaluation of a model on data sets: `python -m glimodern.evaluate MODEL --data SOURCE ...`.

`data.asked_types` chooses the labels that are asked of a sentence. Gold spans that the model cannot give (wider than
max_width, or cut off) stay in the gold and count as missed.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_file, checkpoint_files, write_report
from glimodern.data import Dataset, asked_types, load_split, with_asked_types
from glimodern.data.metrics import Scores, score
from glimodern.display import console
from glimodern.inputs.packer import Packer
from glimodern.inputs.words import Entity
from glimodern.model.glimodern import GLiModern
from glimodern.settings import AT_LEAST_ONE, PROBABILITY, check_settings, refuse_repeated

logger = logging.getLogger(__name__)


def evaluate(model: GLiModern, dataset: Dataset, *, threshold: float = 0.5, batch_tokens: int | str = "auto") -> Scores:
    """Flat prediction at one threshold, scored by exact match (see metrics.score); groups are reported apart."""
    predicted = predict_gold_labels(
        model, dataset, asked_types(dataset), threshold=threshold, batch_tokens=batch_tokens
    )
    return score_dataset(dataset, predicted)


def predict_gold_labels(
    model: GLiModern,
    dataset: Dataset,
    asked: Sequence[Sequence[str]],
    *,
    threshold: float,
    batch_tokens: int | str = "auto",
) -> list[list[Entity]]:
    """The entities (first word, last word, label) found in each sentence, asked[i] its labels."""
    words = (example.words for example in dataset)
    found = model.predict_words(words, asked, threshold=threshold, batch_tokens=batch_tokens)
    return [[(start, end, label) for start, end, label, _ in text.entities] for text in found]


def score_dataset(dataset: Dataset, predicted: Sequence[Sequence[Entity]]) -> Scores:
    """Scores of predictions, one list a sentence, against the data set's gold."""
    groups = [example.group for example in dataset]
    gold = [example.entities for example in dataset]
    return score(gold, predicted, groups=groups if any(groups) else None)


def check_evaluation(setting: str, dataset: Dataset, packer: Packer) -> None:
    """ValueError, naming the sentence, if the labels asked of one do not fit the encoder beside no text at all.

    Warns where there is no gold, so that F1 is 0 whatever is found.
    """
    fitting: set[tuple[str, ...]] = set()
    for number, (example, labels) in enumerate(zip(dataset, asked_types(dataset), strict=True)):
        if tuple(labels) in fitting:
            continue
        try:
            packer.pack([[]], [labels])
        except ValueError as error:
            raise ValueError(f"{setting}: {dataset.name}, sentence {example.id or number}: {error}") from error
        fitting.add(tuple(labels))
    if not any(example.entities for example in dataset):
        logger.warning("%s: %s has no gold entity, so F1 is 0 whatever a model finds", setting, dataset.name)


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `python -m glimodern.evaluate`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    data: tuple[str, ...]
    """Files, folders or hub data sets."""
    split: str | None = "test"
    """Split to read from folders that have splits."""
    threshold: Annotated[float, PROBABILITY] = 0.5
    """Least probability of an entity."""
    max_sentences: Annotated[int | None, AT_LEAST_ONE] = None
    """Only the first so many sentences of each data set, and of each group in it."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Arithmetic of the model."""
    device: str = "cpu"
    """Device to run on."""
    batch_tokens: Annotated[int, AT_LEAST_ONE] | Literal["auto"] = "auto"
    """Tokens in a batch; auto: what suits the device."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    json: str | None = None
    """Write the scores to this file; its folder is made."""

    def __post_init__(self) -> None:
        check_settings(self)


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
    given = sys.argv[1:] if arguments is None else arguments
    refuse_repeated(given, ["--data"])
    config = tyro.cli(
        Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes], args=given, prog="python -m glimodern.evaluate"
    )
    if not config.data:
        raise ValueError("--data: expected at least one file, folder or hub data set, got none")
    output = None
    if config.json is not None:
        output = check_output_file("--json", config.json, [*checkpoint_files(config.model), *config.data])
    datasets: dict[str, Dataset] = {}
    for source in config.data:
        dataset = with_asked_types(load_split(source, config.split, skip_bad_rows=config.skip_bad_rows))
        datasets[source] = dataset if config.max_sentences is None else first_sentences(dataset, config.max_sentences)
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    for dataset in datasets.values():
        check_evaluation("--data", dataset, model.packer)
    shown = console()
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for source, dataset in datasets.items():
        try:
            scores = evaluate(model, dataset, threshold=config.threshold, batch_tokens=config.batch_tokens)
        except Exception as error:  # the other data sets are still worth their scores
            logger.exception("%s was not evaluated", source)
            failed[source] = f"{type(error).__name__}: {error}"
            continue
        results[source] = scores.to_dict()
        shown.print(scores.table(f"{dataset.name}: {len(dataset)} sentences, threshold {config.threshold}"))
    average = sum(result["micro"]["f1"] for result in results.values()) / len(results) if results else None
    if output is not None:
        report = {"model": config.model, "threshold": config.threshold, "mean_micro_f1": average, "data": results}
        write_report(output, {**report, "failed": failed})
    if len(results) > 1 and average is not None:
        shown.print(f"mean micro F1 of {len(results)} data sets: {100 * average:.1f}")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(datasets)} data sets were not evaluated: {'; '.join(failed.values())}")


if __name__ == "__main__":
    cli.run(main)
