"""Settings of a corpus job, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from glimodern import cli
from glimodern.cli.prediction import TEXT_FIELD, PredictionOptions
from glimodern.settings import AT_LEAST_ONE, NOT_NEGATIVE, check_value, field_hints, refuse_repeated

from .inputs import Compression, Format

_NUMBERS = ("shard_rows", "max_errors", "ray_workers", "ray_threads")


@dataclass(frozen=True)
class JobConfig:
    """Settings of `python -m glimodern.jobs`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    input: tuple[str, ...]
    """Files to read, or patterns of their names, in which ** stands for any folders: .jsonl, .json, .txt, .csv, .tsv
    and .parquet; all but the last may be compressed. Put quotes around a pattern."""
    output: str
    """Folder to write to: shards part-FILE-SHARD, errors.jsonl, manifest.jsonl and summary.json. The same command goes
    on where a job in that folder was stopped."""
    label_options: cli.LabelOptions = field(default_factory=cli.LabelOptions)
    text_field: str = TEXT_FIELD
    """Name of the field or column with the text. A .txt file has one text per line."""
    format: Literal["same", Format] = "same"
    """Format of the output; same: that of each input file, and JSON lines for .txt and .json."""
    compress: Literal["same", Compression] = "same"
    """Compression of the output; same: that of each input file."""
    shard_rows: Annotated[int, AT_LEAST_ONE] = 4096
    """Rows of an input file that make one output file."""
    max_errors: Annotated[int, NOT_NEGATIVE] = 100
    """Rows that may fail. They are left out and listed in errors.jsonl; one more stops the job, which can go on."""
    prediction: PredictionOptions = field(default_factory=PredictionOptions)
    ray: bool = False
    """Spread the shards over the workers of a Ray cluster, which all see the same files. RAY_ADDRESS names the cluster;
    without it, one is started on this machine."""
    ray_workers: Annotated[int, AT_LEAST_ONE] = 2
    """Workers of --ray, each with a model of its own; with --device cuda, each on a GPU of its own."""
    ray_threads: Annotated[int, AT_LEAST_ONE] = 1
    """Threads, and so CPU cores, of a worker of --ray."""

    def __post_init__(self) -> None:
        hints = field_hints(JobConfig)
        for name in _NUMBERS:
            check_value(name, hints[name], getattr(self, name))

    @property
    def cut_field(self) -> str | None:
        """Name of the output field of words that were not read; None: every text is read whole, or is an error."""
        return self.prediction.cut_field if self.prediction.reading.long_texts == "cut" else None

    @property
    def output_fields(self) -> tuple[str, ...]:
        """Names of the fields that the job adds."""
        return (self.prediction.result_field, *([self.cut_field] if self.cut_field else []))


def parse_job_config(arguments: Sequence[str]) -> JobConfig:
    """Parse the command line. Raises ValueError for settings that contradict each other or lack a value."""
    refuse_repeated(arguments, ["--input"])
    config = tyro.cli(
        Annotated[JobConfig, tyro.conf.OmitArgPrefixes], args=list(arguments), prog="python -m glimodern.jobs"
    )
    if not config.input:
        raise ValueError("--input: expected at least one file or pattern, got none; name one")
    check_value("--text-field", str, config.text_field)
    cli.check_unicode(config.text_field, "--text-field")
    config.prediction.check_fields(config.text_field)
    return config
