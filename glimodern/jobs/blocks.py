"""Rows of input files in blocks, which make up shards: a function of the files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

BLOCK_ROWS = 256  # rows that are handed on together


class Row(NamedTuple):
    """One row with a text.

    place: where it was read, "file:7" or "file[7]". fault: why it has no text, else None. head: the row as the output
    needs it: the beginning of an output line, the values of its columns, or None if they are in the block's table.
    tail: the end of that line.
    """

    place: str
    text: str = ""
    fault: str | None = None
    head: Any = None
    tail: str = "\n"


class Shard(NamedTuple):
    """Number of an input file and of a shard in it, both from 0."""

    file: int
    number: int


class Block(NamedTuple):
    """Consecutive rows of one shard.

    position: bytes of the file that were read so far, for the progress. ends_shard, ends_file: whether these are the
    last rows of their shard and of their file. table: the rows as a batch of pyarrow, of a Parquet file.
    """

    shard: Shard
    rows: list[Row]
    position: int
    ends_shard: bool
    ends_file: bool
    table: Any = None


def cut_blocks(
    units: Iterator[T], parse: Callable[[T], Row], start: Shard, shard_rows: int, position: Callable[[], int]
) -> Iterator[Block]:
    """Yield the blocks of a file from a shard on; a file without rows has one empty shard.

    units: the file's rows, unread. parse: reads one. position: see `Block`.
    """
    skipped = start.number * shard_rows
    skip(units, skipped)
    shard, count, ahead = start, 0, next(units, None)
    while True:
        rows: list[Row] = []
        while ahead is not None and len(rows) < BLOCK_ROWS and count < shard_rows:
            rows.append(parse(ahead))
            count += 1
            ahead = next(units, None)
        ends_file = ahead is None
        yield Block(shard, rows, position(), ends_file or count == shard_rows, ends_file)
        if ends_file:
            return
        if count == shard_rows:
            shard, count = Shard(shard.file, shard.number + 1), 0


def skip(units: Iterable[T], count: int) -> None:
    """Read and forget the first units."""
    next(islice(units, count, count), None)
