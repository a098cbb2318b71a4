"""Exact-match evaluation of a model on data sets: `python -m glimodern.evaluate MODEL --data SOURCE ...`.

`data.asked_types` chooses the labels asked of a sentence. Gold spans that the model cannot find, because they are wider
than max_width, or because long texts are cut, stay in the gold and count as missed.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro
from typing_extensions import Unpack

from glimodern import cli
from glimodern.checkpoint.config import stored_splitter
from glimodern.cli.outputs import check_output_file, checkpoint_files, write_report
from glimodern.cli.reading import ReadingSettings, Threshold, ThresholdOption
from glimodern.data import Dataset, asked_types, load_split, with_asked_types
from glimodern.data.metrics import Scores, score
from glimodern.display import console
from glimodern.inference.thresholds import CALIBRATED, OTHERS
from glimodern.inference.windows import ReadingOptions
from glimodern.inputs.labels import LabelArgument, Thresholds
from glimodern.inputs.packer import Packer
from glimodern.inputs.words import Entity, SplitterName
from glimodern.model.glimodern import GLiModern
from glimodern.settings import AT_LEAST_ONE, check_settings, refuse_repeated

logger = logging.getLogger(__name__)


def evaluate(
    model: GLiModern,
    dataset: Dataset,
    *,
    threshold: Thresholds = 0.5,
    batch_tokens: int | str = "auto",
    descriptions: Mapping[str, str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> Scores:
    """Predict flat entities and score them by exact match (see `data.metrics.score`).

    Groups of the data set are also scored separately. threshold, batch_tokens and reading (long_texts, window, context,
    labels_per_prompt): see `GLiModern.predict`. descriptions: {type: what the model reads for it}; other types are read
    themselves.
    """
    asked = _described(asked_types(dataset), descriptions or {})
    predicted = predict_gold_labels(model, dataset, asked, threshold=threshold, batch_tokens=batch_tokens, **reading)
    return score_dataset(dataset, predicted)


def _described(label_sets: Sequence[Sequence[str]], descriptions: Mapping[str, str]) -> list[LabelArgument]:
    """Return the label sets of sentences with descriptions."""
    if not descriptions:
        return list(label_sets)
    return [{label: descriptions.get(label, label) for label in labels} for labels in label_sets]


def predict_gold_labels(
    model: GLiModern,
    dataset: Dataset,
    label_sets: Sequence[LabelArgument],
    *,
    threshold: Thresholds,
    batch_tokens: int | str = "auto",
    **reading: Unpack[ReadingOptions],
) -> list[list[Entity]]:
    """Find the entities (first word, last word, label) of each sentence. label_sets: the labels of each sentence."""
    words = (example.words for example in dataset)
    results = model.predict_words(words, label_sets, threshold=threshold, batch_tokens=batch_tokens, **reading)
    return [[(start, end, label) for start, end, label, _ in result.entities] for result in results]


def score_dataset(dataset: Dataset, predicted: Sequence[Sequence[Entity]]) -> Scores:
    """Score predicted entities, one list per sentence, against the data set's gold."""
    groups = [example.group for example in dataset]
    gold = [example.entities for example in dataset]
    return score(gold, predicted, groups=groups if any(groups) else None)


def thresholds_of(threshold: Threshold, datasets: Sequence[Dataset]) -> list[Threshold]:
    """Return the thresholds of each data set: of a mapping, those of the types that it is asked.

    Raises ValueError for a mapping that names a type that no data set is asked, or that lacks one.
    """
    if not isinstance(threshold, dict):
        return [threshold] * len(datasets)
    asked = [{label for labels in asked_types(dataset) for label in labels} for dataset in datasets]
    unknown = sorted(threshold.keys() - set().union(*asked) - {OTHERS})
    if unknown:
        raise ValueError(f"--threshold: expected types that the data are asked, or {OTHERS!r}, got {unknown}")
    for dataset, types in zip(datasets, asked, strict=True):
        missing = [] if OTHERS in threshold else sorted(types - threshold.keys())
        if missing:
            raise ValueError(
                f"--threshold: expected a probability for each type of {dataset.name}, got none for {missing}; add "
                f"{OTHERS!r} for the others"
            )
    return [{name: value for name, value in threshold.items() if name in {*types, OTHERS}} for types in asked]


def check_evaluation(
    setting: str, dataset: Dataset, packer: Packer, descriptions: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError, with the sentence, for a label that does not fit the encoder even without a text.

    setting: the data set's name in messages. descriptions: see `evaluate`. Warns if the data set has no gold entity, so
    that F1 is always 0.
    """
    descriptions = descriptions or {}
    fitting: set[tuple[str, ...]] = set()
    for number, (example, labels) in enumerate(zip(dataset, asked_types(dataset), strict=True)):
        if tuple(labels) in fitting:
            continue
        if problem := packer.label_problem([descriptions.get(label, label) for label in labels]):
            raise ValueError(f"{setting}: {dataset.name}, sentence {example.id or number}: {problem}")
        fitting.add(tuple(labels))
    if not any(example.entities for example in dataset):
        logger.warning("%s: %s has no gold entity, so F1 is 0 for every model", setting, dataset.name)


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `python -m glimodern.evaluate`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    data: tuple[str, ...]
    """Files, folders or hub data sets."""
    split: str | None = "test"
    """Split to read from folders that have splits."""
    descriptions_file: str | None = None
    """File of a JSON object {"type": "description"}: the model reads the description of a type."""
    threshold_option: ThresholdOption = field(default_factory=ThresholdOption)
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    max_sentences: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum number of sentences of each data set, or of each of its groups. The first ones are used."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Dtype of the model; auto: bf16 on hardware that multiplies it natively, else fp32."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:N, auto, or another of PyTorch's names."""
    batch_tokens: Annotated[int, AT_LEAST_ONE] | Literal["auto"] = "auto"
    """Maximum tokens in a batch; auto: chosen for the device."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    splitter: SplitterName | None = None
    """How the texts of the data are split into words; by default as the checkpoint says."""
    adapter: str | None = None
    """Folder of an adapter of the checkpoint, which `python -m glimodern.train --lora-rank` wrote."""
    json: str | None = None
    """File to write the scores to, as JSON. Its folder is created."""

    def __post_init__(self) -> None:
        check_settings(self)


def _shown(threshold: Threshold) -> str:
    """Return thresholds as the command line takes them."""
    if not isinstance(threshold, dict):
        return str(threshold)
    return ", ".join(f"{label}={probability}" for label, probability in threshold.items())


def read_descriptions(file: str | None, datasets: Sequence[Dataset]) -> dict[str, str]:
    """Read {type: description}; ValueError for a type that no data set is asked."""
    if file is None:
        return {}
    descriptions = cli.read_labels_file(file)
    asked = {label for dataset in datasets for labels in asked_types(dataset) for label in labels}
    unknown = sorted(descriptions.keys() - asked)
    if unknown:
        raise ValueError(f"--descriptions-file: expected types that the data are asked, got {unknown} in {file}")
    return descriptions


def first_sentences(dataset: Dataset, count: int) -> Dataset:
    """Keep the first `count` sentences of each group, or of a data set without groups. Their `types` do not change."""
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
    threshold = config.threshold_option.read()
    output = None
    if config.json is not None:
        output = check_output_file("--json", config.json, [*checkpoint_files(config.model), *config.data])
    splitter = config.splitter or stored_splitter(config.model)
    datasets: dict[str, Dataset] = {}
    for source in config.data:
        dataset = with_asked_types(
            load_split(source, config.split, skip_bad_rows=config.skip_bad_rows, splitter=splitter)
        )
        datasets[source] = dataset if config.max_sentences is None else first_sentences(dataset, config.max_sentences)
    thresholds = thresholds_of(threshold, list(datasets.values()))
    descriptions = read_descriptions(config.descriptions_file, list(datasets.values()))
    model = GLiModern.from_pretrained(
        config.model, dtype=config.dtype, device=config.device, splitter=config.splitter, adapter=config.adapter
    )
    model.predict_words([], [], threshold=threshold if threshold == CALIBRATED else 0.5)  # an error before any work
    for dataset in datasets.values():
        check_evaluation("--data", dataset, model.packer, descriptions)
    shown = console()
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    reading = config.reading.given()
    for (source, dataset), own in zip(datasets.items(), thresholds, strict=True):
        try:
            scores = evaluate(
                model, dataset, threshold=own, batch_tokens=config.batch_tokens, descriptions=descriptions, **reading
            )
        except Exception as error:  # the other data sets are still evaluated
            trace = bool(os.environ.get("GLIMODERN_TRACEBACK")) or not cli.is_user_error(error)
            logger.error("%s was not evaluated: %s", source, error, exc_info=trace)
            failed[source] = f"{type(error).__name__}: {error}"
            continue
        results[source] = scores.to_dict()
        shown.print(scores.table(f"{dataset.name}: {len(dataset)} sentences, threshold {_shown(threshold)}"))
    average = sum(result["micro"]["f1"] for result in results.values()) / len(results) if results else None
    if output is not None:
        report = {
            "model": config.model,
            "adapter": config.adapter,
            "threshold": threshold,
            **reading,
            "mean_micro_f1": average,
            "data": results,
        }
        write_report(output, {**report, "failed": failed})
    if len(results) > 1 and average is not None:
        shown.print(f"mean micro F1 of {len(results)} data sets: {100 * average:.1f}")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(datasets)} data sets were not evaluated: {'; '.join(failed.values())}")


if __name__ == "__main__":
    cli.run(main)
