"""A job on a Ray cluster: tasks read files, a pool of actors with a model each writes shards, the driver records them.

Ray Data (https://docs.ray.io/en/latest/data/data.html) moves the shards: one task reads one input file, a shard is one
element, and shards come back in order. An actor that dies is replaced, and its shard is done again. The shards are
those of a job without Ray, so either may go on with what the other began. Needs the extra `ray`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimodern.cli import is_user_error
from glimodern.cli.reading import Threshold

from .blocks import Block, Shard
from .config import JobConfig
from .inputs import InputFile
from .output import OutputFolder, Record
from .progress import Progress
from .run import ErrorLimit, Source, bytes_before, describe_job, predictor, write_shard


def check_ray(config: JobConfig) -> None:
    """Raise ImportError without the package ray, and ValueError for a device that workers do not have."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError("--ray needs the package ray; pip install 'glimodern[ray]'") from error
    if config.prediction.device not in ("cpu", "cuda"):
        raise ValueError(
            f"--device: expected cpu or cuda with --ray, which gives each worker a GPU, got {config.prediction.device}"
        )


class RayJobError(ValueError):
    """An error in a task or an actor, with the message that it had there."""


@dataclass(frozen=True)
class Remote:
    """What tasks and actors need. folder: the working folder of the driver, in which relative paths lie."""

    config: JobConfig
    labels: dict[str, str]
    threshold: Threshold
    folder: str

    def load(self) -> Any:
        """Load the model."""
        import torch

        from glimodern.model.glimodern import GLiModern

        os.chdir(self.folder)
        if self.config.prediction.device == "cpu":
            torch.set_num_threads(self.config.ray_threads)
        return GLiModern.from_pretrained(self.config.model, **self.config.prediction.loading())

    @property
    def resources(self) -> dict[str, Any]:
        """CPUs and GPUs of a process with a model."""
        return {"num_cpus": self.config.ray_threads, "num_gpus": int(self.config.prediction.device == "cuda")}


@contextlib.contextmanager
def ray_cluster(config: JobConfig) -> Iterator[None]:
    """Connect to a cluster; without RAY_ADDRESS, start one on this machine, which ends with the context."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if not os.environ.get("RAY_ADDRESS"):
        # one more than the workers have, for the tasks that read
        options |= {"num_cpus": config.ray_workers * config.ray_threads + 1, "include_dashboard": False}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def describe_remotely(remote: Remote, files: Sequence[InputFile]) -> dict[str, Any]:
    """Return `describe_job` of the model as a worker loads it. Raises RayJobError."""
    import ray

    def describe() -> dict[str, Any]:
        model = remote.load()
        predictor(model, remote.labels, remote.threshold, remote.config.prediction.search())
        return describe_job(remote.config, remote.labels, remote.threshold, files, model)

    described: dict[str, Any] = _value(ray.get(ray.remote(**remote.resources)(_guarded).remote(describe)))
    return described


def run_ray_job(remote: Remote, sources: Sequence[Source], output: OutputFolder, progress: Progress) -> None:
    """Write all shards that are not finished. Raises TooManyErrorsError and RayJobError."""
    import ray.data

    config, start = remote.config, output.totals.next
    limit = ErrorLimit(config.max_errors, output.totals.errors, output.folder)
    limit.check()
    if start.file == len(sources):
        return
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # bytes: each shard is a block of its own, and goes to whichever worker is free
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [
        {"file": number, "shard": start.number * (number == start.file)} for number in range(start.file, len(sources))
    ]
    records = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(_Reader(remote, sources))
        .map_batches(
            _Worker,
            fn_constructor_args=(remote, sources, output.folder),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=config.ray_workers),
            **remote.resources,
        )
    )
    before = bytes_before(sources)
    for row in records.iter_rows():
        record, words, position = _value(row["result"])
        output.record(record)
        progress.add(record.rows, words, before[record.file] + position)
        limit.add(record.failed)
        limit.check()
    output.delete_unfinished()  # of workers that were killed


class _Reader:
    """Reads a file into shards: {"file", "shard"} -> elements {"shard": pickled blocks}."""

    def __init__(self, remote: Remote, sources: Sequence[Source]) -> None:
        self.remote, self.sources = remote, sources

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        os.chdir(self.remote.folder)
        source = self.sources[item["file"]]
        shards = _shards(source, Shard(item["file"], item["shard"]), self.remote.config.shard_rows)
        while (result := _guarded(lambda: next(shards, None))) != _NOTHING:
            yield {"shard": result}


def _shards(source: Source, start: Shard, shard_rows: int) -> Iterator[list[Block]]:
    blocks: list[Block] = []
    for block in source.blocks(start, shard_rows):
        blocks.append(block._replace(table=_packed(block.table)))
        if block.ends_shard:
            source.file.check_unchanged()
            yield blocks
            blocks = []


class _Worker:
    """An actor with a model, which writes shards: {"shard": [pickled blocks]} -> {"result": [pickled record]}."""

    def __init__(self, remote: Remote, sources: Sequence[Source], folder: Path) -> None:
        self.remote, self.sources, self.folder = remote, sources, folder
        self.predict: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        (shard,) = batch["shard"]
        return {"result": [_guarded(lambda: self._write(_value(shard)))]}

    def _write(self, packed: list[Block]) -> tuple[Record, int, int]:
        if self.predict is None:
            model, options = self.remote.load(), self.remote.config.prediction.search()
            self.predict = predictor(model, self.remote.labels, self.remote.threshold, options)
        blocks = [block._replace(table=_unpacked(block.table)) for block in packed]
        source = self.sources[blocks[0].shard.file]
        record = write_shard(self.predict, blocks, source, self.folder, self.remote.config.compress)
        words = sum(len(row.text.split()) for block in blocks for row in block.rows)
        return record, words, blocks[-1].position


def _packed(table: Any) -> bytes | None:
    """Return a batch of rows in Arrow's stream format: a pickle of it would hold the batch that it is a slice of."""
    if table is None:
        return None
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_batch(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _unpacked(data: bytes | None) -> Any:
    if data is None:
        return None
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_next_batch()


def _guarded(function: Callable[[], Any]) -> bytes:
    """Return the pickled value of a function; an error for users is a value, which keeps its message on its way."""
    try:
        return pickle.dumps((function(), ""))
    except Exception as error:
        if not is_user_error(error):
            raise
        return pickle.dumps((None, str(error)))


_NOTHING = pickle.dumps((None, ""))


def _value(pickled: bytes) -> Any:
    value, error = pickle.loads(pickled)
    if error:
        raise RayJobError(error)
    return value
