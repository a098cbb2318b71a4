"""The command line of the figures.

It writes lengths and overlap as .png and .svg, and figures.json, which holds every number that they show.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_not_read, check_output_folder
from glimodern.display import cell, console
from glimodern.files.atomic import replace_files, user_path
from glimodern.settings import check_settings, refuse_repeated

from ..example import Dataset
from ..load import load_split
from .counts import TrainingVocabulary, entity_counts, length_counts, mean_familiarity, overlap, parts
from .draw import check_matplotlib, draw
from .familiarity import check_encoder, label_familiarity

if TYPE_CHECKING:
    from rich.table import Table

NAMES = ("lengths.png", "lengths.svg", "overlap.png", "overlap.svg", "figures.json")


@dataclass(frozen=True)
class FiguresConfig:
    """Settings of `python -m glimodern.data.figures`."""

    train: tuple[str, ...]
    """Files, folders or hub data sets of training. Folders with splits: train."""
    eval: tuple[str, ...]
    """Files, folders or hub data sets of evaluation."""
    output: str
    """Folder to write to. It is created; its other files stay."""
    eval_split: str | None = "test"
    """Split to read from evaluation folders that have splits."""
    encoder: str | None = None
    """Folder of an encoder, whose embeddings say how near two labels are. Without it their characters do."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        check_settings(self)


def check_paths(config: FiguresConfig) -> Path:
    """Return the output folder. Raises ValueError for sources named twice or not at all, or if data are replaced."""
    for name in ("train", "eval"):
        sources = getattr(config, name)
        if not sources:
            raise ValueError(f"{name}: expected at least one file, folder or hub data set, got none")
        for number, source in enumerate(sources):
            twin = next((other for other in sources[:number] if _same(source, other)), None)
            if twin is not None:
                raise ValueError(f"{name}: expected each data set once, got {twin} and {source}; leave one out")
    output = check_output_folder("output", config.output)
    reads = {"train": config.train, "eval": config.eval, "encoder": (config.encoder,) if config.encoder else ()}
    check_not_read("output", [output / name for name in NAMES], reads)
    for name, sources in reads.items():
        for source in sources:
            folder = user_path(source, name)
            if folder.is_dir() and folder.resolve() in (output.resolve(), output.resolve().parent):
                raise ValueError(
                    f"output: expected a folder outside {source}, which {name} reads, got {output}, whose figures.json "
                    "the next run would read as data; choose a folder elsewhere"
                )
    for path in (output / name for name in NAMES):
        if path.is_dir():
            raise ValueError(
                f"output: expected {path} to be a file or not to exist, got a folder; choose another folder"
            )
    return output


def _same(one: str, other: str) -> bool:
    """Return whether two sources are the same path or hub name."""
    paths = (user_path(one), user_path(other))
    return os.path.samefile(*paths) if all(path.exists() for path in paths) else one == other


def load_sets(config: FiguresConfig) -> tuple[list[Dataset], list[Dataset]]:
    """Load the data sets of training and evaluation.

    Raises ValueError if both read the same data, or an evaluation set has no entity.
    """
    train = [load_split(source, "train", skip_bad_rows=config.skip_bad_rows) for source in config.train]
    test = [load_split(source, config.eval_split, skip_bad_rows=config.skip_bad_rows) for source in config.eval]
    for source, dataset in zip(config.eval, test, strict=True):
        for other, trained in zip(config.train, train, strict=True):
            # one folder may hold a split for each; its name is part of the data set's
            if _same(source, other) and user_path(source).exists() and dataset.name == trained.name:
                raise ValueError(
                    f"eval: expected data that train does not read, got {source} in both; leave it out of one"
                )
        if not any(example.entities for example in dataset):
            raise ValueError(
                f"eval: expected gold entities, got none in the {len(dataset)} sentences of {dataset.name}; "
                "leave it out"
            )
    return train, test


def make_report(train: Sequence[Dataset], test: Sequence[Dataset], encoder: str | None = None) -> dict[str, Any]:
    """Count what the data sets hold; every number that the figures show, as JSON.

    train, eval: one object a data set, with its groups. overlap: see `counts.overlap`. familiarity: the mean over a
    set's types; labels has that of each type. similarity: how labels are compared. Shares and familiarities lie in
    [0, 1].
    """
    training = TrainingVocabulary(train)
    asked = {label for dataset in test for example in dataset for _, _, label in example.entities}
    labels = label_familiarity(asked, training.labels, encoder)

    def numbers(name: str, dataset: Dataset, evaluated: bool) -> dict[str, Any]:
        counted = []
        for group, examples in parts(dataset):
            one: dict[str, Any] = {"name": name if group is None else group, **entity_counts(examples)}
            one["lengths"] = length_counts(examples)
            if evaluated:
                one["overlap"] = overlap(examples, training)
                one["familiarity"] = mean_familiarity(one["overlap"]["labels"], labels)
            counted.append(one)
        return {**counted[0], "groups": counted[1:]}

    return {
        "similarity": "character n-grams" if encoder is None else f"encoder {user_path(encoder).name}",
        "train_types": len(training.labels),
        "train_entity_texts": len(training.texts),
        "train": [numbers(dataset.name, dataset, False) for dataset in train],
        "eval": [numbers(dataset.name, dataset, True) for dataset in test],
        "labels": labels,
    }


def write_figures(report: dict[str, Any], output: Path) -> None:
    """Write the figures and figures.json into a folder, all of them or none; its other files stay."""
    with replace_files(output, lambda folder, names: (), last="figures.json") as staged:
        draw(report, staged)
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (staged / "figures.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def make_table(report: dict[str, Any]) -> Table:
    """Build a rich table of the evaluation sets and their groups: what of them occurs in training, in per cent."""
    from rich.table import Table

    table = Table(title=cell("what of the evaluation occurs in training"))
    table.add_column("data set", overflow="fold")
    for name in ("entities", "seen\n%", "folded\n%", "types", "seen\n%", "folded\n%", "famil-\niarity"):
        table.add_column(name, justify="right", no_wrap=True)
    for dataset in report["eval"]:
        for number, one in enumerate((dataset, *dataset["groups"])):
            numbers = []
            for key in ("entities", "types"):
                counts = one["overlap"][key]
                shares = (counts["share_exact"], counts["share_folded"])
                numbers += [
                    f"{counts['total']:,}",
                    *("-" if share is None else f"{100 * share:.1f}" for share in shares),
                ]
            familiar = one["familiarity"]
            name = one["name"] if number == 0 else f"  {one['name']}"
            table.add_row(cell(name), *numbers, "-" if familiar is None else f"{familiar:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    refuse_repeated(given, ["--train", "--eval"])
    config = tyro.cli(
        Annotated[FiguresConfig, tyro.conf.OmitArgPrefixes],
        args=given,
        prog="python -m glimodern.data.figures",
        description="Draw what data hold: lengths of sentences, and what of the evaluation training has seen.",
    )
    check_matplotlib()
    output = check_paths(config)
    if config.encoder is not None:
        check_encoder(config.encoder)
    report = make_report(*load_sets(config), config.encoder)
    write_figures(report, output)
    shown = console()
    shown.print(make_table(report))
    shown.print(f"{', '.join(NAMES)}: in {output}")


if __name__ == "__main__":
    cli.run(main)
