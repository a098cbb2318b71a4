"""A job from its files to its shards, in this process."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glimodern.cli.reading import Threshold
from glimodern.inference.compute import TextDoesNotFitError
from glimodern.inference.thresholds import CALIBRATED
from glimodern.version import __version__

from .answers import Answered, Predict, answered
from .blocks import Block, Shard
from .config import JobConfig
from .inputs import InputFile, output_format
from .output import ERRORS, FailedRow, OutputFolder, Record
from .parquet_files import ParquetFile, check_codec, check_pyarrow
from .progress import Progress
from .shard_files import ShardFile, check_compressor
from .text_files import Fields, TextFile

Source = TextFile | ParquetFile

_WAITING = 8  # blocks that may wait for the thread that writes


def open_sources(files: Sequence[InputFile], config: JobConfig) -> list[Source]:
    """Check every input file and the formats to write. Raises ValueError, OSError and ImportError."""
    fields = Fields(config.text_field, config.prediction.result_field, config.cut_field)
    sources: list[Source] = []
    for file in files:
        output = output_format(file, config.format)
        if output == "parquet":
            check_pyarrow(file.path)
            check_codec(file, config.compress)
        else:
            check_compressor(file.compression if config.compress == "same" else config.compress)
        opened = ParquetFile.opened if file.format == "parquet" else TextFile.opened
        sources.append(opened(file, fields, output))
    return sources


def describe_job(
    config: JobConfig, labels: dict[str, str], threshold: Threshold, files: Sequence[InputFile], model: Any
) -> dict[str, Any]:
    """Return all that the output depends on, as the manifest holds it."""
    options = config.prediction
    weight = next(model.parameters())
    calibration = model.calibration.to_json() if threshold == CALIBRATED and model.calibration is not None else None
    return {
        "version": __version__,
        "model": config.model,
        "weights": model.weights_fingerprint,
        "config": _digest(json.dumps(asdict(model.config), sort_keys=True, default=str)),
        "dtype": model.packed_dtype or str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "labels": [[label, description] for label, description in labels.items()],
        "threshold": threshold,
        "calibration": None if calibration is None else _digest(calibration),
        **options.search(),
        "splitter": options.splitter,
        "text_field": config.text_field,
        "result_field": options.result_field,
        "format": config.format,
        "compress": config.compress,
        "shard_rows": config.shard_rows,
        "inputs": [file.identity for file in files],
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def predictor(model: Any, labels: dict[str, str], threshold: Threshold, options: dict[str, Any]) -> Predict:
    """Return the model's prediction of a stream of texts. Raises ValueError for labels that the model cannot read."""
    model.predict([], labels, threshold, **options)

    def predict(texts: Iterator[str]) -> Iterable[Any]:
        return model.predict(texts, labels, threshold, **options)

    return predict


def is_of_text(error: Exception, count: int) -> bool:
    """Return whether a prediction's error, after so many results, is one of the next text."""
    return isinstance(error, TextDoesNotFitError) or str(error).startswith(f"texts[{count}]: ")


class TooManyErrorsError(ValueError):
    """More rows failed than --max-errors allows."""


class ErrorLimit:
    """Counts failed rows, and ends a job with more than a number of them.

    most: that number. count: those of earlier runs.
    """

    def __init__(self, most: int, count: int, folder: Path) -> None:
        self.most, self.count = most, count
        self.file = folder / ERRORS
        self.last = FailedRow("", "")

    def add(self, failed: Iterable[FailedRow]) -> None:
        """Count rows."""
        for row in failed:
            self.count += 1
            self.last = row

    def check(self) -> None:
        """Raise TooManyErrorsError if there are more."""
        if self.count > self.most:
            last = f"the last: {self.last.place}: {self.last.reason}; " if self.last.reason else ""
            raise TooManyErrorsError(
                f"--max-errors: expected at most {self.most} rows that fail, got {self.count}; {last}see {self.file}, "
                "and run the command again with a larger number to go on"
            )


def blocks_from(sources: Sequence[Source], start: Shard, shard_rows: int) -> Iterator[Block]:
    """Yield the blocks of all files from a shard on. Raises ValueError for a file that has changed."""
    for number in range(start.file, len(sources)):
        source = sources[number]
        first = start if number == start.file else Shard(number, 0)
        with contextlib.closing(source.blocks(first, shard_rows)) as blocks:  # type: ignore[type-var]
            for block in blocks:
                if block.ends_shard:
                    source.file.check_unchanged()
                yield block


def run_job(
    predict: Predict, sources: Sequence[Source], output: OutputFolder, config: JobConfig, progress: Progress
) -> None:
    """Find the entities of all rows from the first shard on that is not finished, and write their shards.

    A thread writes, while the next rows are computed. Raises TooManyErrorsError, after the errors known by then
    have been listed; any other error leaves finished shards and nothing else.
    """
    limit = ErrorLimit(config.max_errors, output.totals.errors, output.folder)
    before = bytes_before(sources)
    writer = _ShardWriter(sources, output, config.compress)

    def limited() -> Iterator[Block]:
        for block in blocks_from(sources, output.totals.next, config.shard_rows):
            limit.add(FailedRow(row.place, row.fault) for row in block.rows if row.fault is not None)
            yield block
            limit.check()

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-write") as thread:
        try:
            for done in answered(predict, limited(), is_of_text):
                while waiting and (waiting[0].done() or len(waiting) >= _WAITING):
                    waiting.popleft().result()
                waiting.append(thread.submit(writer.write, done))
                block, answers = done
                refused = zip(block.rows, answers, strict=True)
                limit.add(
                    FailedRow(row.place, why) for row, why in refused if row.fault is None and isinstance(why, str)
                )
                limit.check()
                words = sum(len(row.text.split()) for row in block.rows)
                progress.add(len(block.rows), words, before[block.shard.file] + block.position)
            while waiting:
                waiting.popleft().result()
        except BaseException as error:
            for future in waiting:
                future.exception()  # waits; if a write failed too, `error` is that, or came first
            thread.submit(writer.give_up, isinstance(error, TooManyErrorsError)).result()
            raise


def bytes_before(sources: Sequence[Source]) -> list[int]:
    """Return the bytes of the files before each one, and of all."""
    sums = [0]
    for source in sources:
        sums.append(sums[-1] + source.file.size)
    return sums


class _ShardWriter:
    """Writes answered blocks, in order, to the files of their shards, and records finished shards.

    After an error it writes nothing more.
    """

    def __init__(self, sources: Sequence[Source], output: OutputFolder, compress: str) -> None:
        self.sources, self.output, self.compress = sources, output, compress
        self.shard: ShardFile | None = None
        self.broken = False

    def write(self, done: Answered) -> None:
        if self.broken:
            return
        self.broken = True
        block, answers = done
        if self.shard is None:
            source = self.sources[block.shard.file]
            self.shard = ShardFile(self.output.folder, block.shard, source, self.compress)
        self.shard.add(block, answers)
        if block.ends_shard:
            self.output.record(self.shard.finish())
            self.shard = None
        self.broken = False

    def give_up(self, list_errors: bool) -> None:
        """Delete the file of an unfinished shard. list_errors: list its errors, until the job goes on."""
        if self.shard is not None:
            self.shard.abort()
            if list_errors:
                self.output.note(self.shard.failed)
            self.shard = None


def write_shard(predict: Predict, blocks: Sequence[Block], source: Source, folder: Path, compress: str) -> Record:
    """Find the entities of one shard and write its file."""
    shard = ShardFile(folder, blocks[0].shard, source, compress)
    try:
        for block, answers in answered(predict, blocks, is_of_text):
            shard.add(block, answers)
        return shard.finish()
    except BaseException:
        shard.abort()
        raise
