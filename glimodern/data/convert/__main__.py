"""The command line of conversions: a data set in any format that is read, to a file of another."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_file
from glimodern.display import console
from glimodern.files.atomic import user_path
from glimodern.inputs.words import DEFAULT_SPLITTER, SplitterName
from glimodern.settings import check_settings

from ..formats import counted
from ..load import load_dataset
from . import docbin
from .write import Target, write_dataset


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `python -m glimodern.data.convert`."""

    input: tyro.conf.Positional[str]
    """File, folder or hub data set to read; its content tells its format."""
    output: tyro.conf.Positional[str]
    """File to write."""
    to: Target
    """Format to write: spans or gliner for training, or that of another program. label-studio is one JSON array, docbin
    is spaCy's, the others are JSON lines."""
    format: Literal["auto", "gliner", "spans", "conll", "pile-ner", "label-studio", "doccano", "prodigy", "docbin"] = (
        "auto"
    )
    """Format of the input; auto: by its content."""
    split: str | None = None
    """Split to read from folders and data sets that have splits."""
    text_key: str | None = None
    """Field of Label Studio's tasks with the text. Default: "text", or the only field that is a string."""
    splitter: SplitterName = DEFAULT_SPLITTER
    """How texts are split into words; a word is cut where an entity begins or ends inside it."""
    language: str = docbin.DEFAULT_LANGUAGE
    """Language of spaCy's tokenizer, for docbin."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read, instead of stopping."""
    overwrite: bool = False
    """Replace a file that stands at OUTPUT."""

    def __post_init__(self) -> None:
        check_settings(self)


def convert(config: ConvertConfig) -> Counter[str]:
    """Read the input and write the output; return counts of texts, entities, and what did not come along.

    Raises ValueError if the output exists and overwrite is False, or if it lies in what the command reads.
    """
    path = check_output_file("output", config.output, [config.input])
    source = user_path(config.input, "input")
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"output: expected a file outside {config.input}, which the command reads, got {path}, which the next "
            "reader of the folder would take for data; choose another folder"
        )
    if path.is_file() and not config.overwrite:
        raise ValueError(f"output: expected a file that does not exist, got {path}; add --overwrite to replace it")
    if config.to == "docbin":
        docbin.check_language(config.language)
    dataset = load_dataset(
        config.input,
        split=config.split,
        skip_bad_rows=config.skip_bad_rows,
        format=config.format,
        splitter=config.splitter,
        text_key=config.text_key,
        cut_words=True,
    )
    counts = Counter(texts=len(dataset), entities=sum(len(example.entities) for example in dataset))
    counts.update({f"rows left out ({reason})": count for reason, count in dataset.left_out.items()})
    counts["bad rows skipped"] = dataset.skipped
    counts["answers not in their text, left out"] = dataset.unmatched
    counts.update(dataset.notes)
    counts.update(write_dataset(dataset, path, config.to, config.language))
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[ConvertConfig, tyro.conf.OmitArgPrefixes],
        args=sys.argv[1:] if arguments is None else arguments,
        prog="python -m glimodern.data.convert",
        description="Convert annotated texts between our formats, annotation tools and spaCy.",
    )
    counts = convert(config)
    console().print(f"{config.output}: {counted(counts)}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
