"""Output files of shards: each appears whole under its name, or not at all.

The bytes of a file depend on its rows alone: text is compressed in steps of a whole block, and no header has a time.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import lzma
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from glimodern.files.atomic import flush

from .blocks import Block, Shard
from .inputs import SUFFIXES
from .output import FailedRow, Record, partial_name, shard_name
from .parquet_files import ParquetFile, ParquetWriter
from .text_files import TextFile, first_line, output_lines

_GZIP_LEVEL = 6


class _Writer(Protocol):
    def add(self, block: Block, answers: Sequence[Any]) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class ShardFile:
    """The output file of a shard: `add` its blocks in order, the last of which ends the shard, then `finish`.

    folder: the output folder. compress: a value of `--compress`.
    """

    def __init__(self, folder: Path, shard: Shard, source: TextFile | ParquetFile, compress: str) -> None:
        self.shard = shard
        suffix = f".{source.output}"
        if source.output != "parquet":
            compression = source.file.compression if compress == "same" else compress
            suffix += SUFFIXES[compression]
        self.path = folder / shard_name(shard, suffix)
        self.partial = folder / partial_name(self.path.name)
        self.rows = self.words_cut = 0
        self.entities: Counter[str] = Counter()
        self.failed: list[FailedRow] = []
        self.ends_file = False
        self.writer: _Writer
        with _named(self.partial):
            if source.output == "parquet":
                self.writer = ParquetWriter(self.partial, source, compress)
            else:
                self.writer = _TextWriter(self.partial, source, compression)

    def add(self, block: Block, answers: Sequence[Any]) -> None:
        """Add a block. answers: of each row its Entities, or the reason why it failed, a string."""
        found = [None if isinstance(answer, str) else answer for answer in answers]
        kept = [entities for entities in found if entities is not None]
        if len(kept) < len(found):
            pairs = zip(block.rows, answers, strict=True)
            self.failed += [FailedRow(row.place, answer) for row, answer in pairs if isinstance(answer, str)]
        self.rows += len(found)
        self.words_cut += sum(entities.words_cut for entities in kept)
        self.entities.update([entity["label"] for entities in kept for entity in entities])
        with _named(self.partial):
            self.writer.add(block, found)
        self.ends_file = block.ends_file

    def finish(self) -> Record:
        """Give the file its name and return its record for the manifest."""
        with _named(self.partial):
            self.writer.close()
            flush(self.partial)
            size = self.partial.stat().st_size
            os.replace(self.partial, self.path)
            flush(self.path.parent)
        return Record(
            *self.shard, self.path.name, size, self.rows, self.words_cut, dict(sorted(self.entities.items())),
            tuple(self.failed), self.ends_file,
        )  # fmt: skip

    def abort(self) -> None:
        """Delete what was written of the file."""
        with contextlib.suppress(OSError, ValueError):  # a full disk refuses the rest of it, which nobody needs
            self.writer.abort()
        self.partial.unlink(missing_ok=True)


class _TextWriter:
    """Writes the rows of one shard as lines, compressed or not."""

    def __init__(self, path: Path, source: TextFile | ParquetFile, compression: str) -> None:
        self.fields, self.output = source.fields, source.output
        self.compressor = _compressor(compression)
        self.file = path.open("wb", buffering=0)
        try:
            self._write(first_line(source).encode() if isinstance(source, TextFile) else b"")
        except BaseException:
            self.file.close()
            raise

    def add(self, block: Block, answers: Sequence[Any]) -> None:
        self._write(output_lines(block.rows, answers, self.fields, self.output).encode())

    def _write(self, data: bytes) -> None:
        if data:
            write_whole(self.file, data if self.compressor is None else self.compressor.compress(data))

    def close(self) -> None:
        if self.compressor is not None:
            write_whole(self.file, self.compressor.flush())
        self.file.close()

    def abort(self) -> None:
        self.file.close()


def write_whole(file: Any, data: bytes) -> None:
    """Write all bytes to an unbuffered file, which may take fewer at a time when a disk is nearly full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _compressor(compression: str) -> Any:
    """Return an object with `compress` and `flush`, None for no compression. Raises ImportError for zstd."""
    if compression == "none":
        return None
    if compression == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, wbits=31)  # 31: with gzip's header, in which the time is 0
    if compression == "bzip2":
        return bz2.BZ2Compressor()
    if compression == "xz":
        return lzma.LZMACompressor()
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdCompressor()
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("--compress zstd needs the package `zstandard`; pip install 'glimodern[zstd]'") from error
    return zstandard.ZstdCompressor(write_checksum=True).compressobj()


def check_compressor(compression: str) -> None:
    """Raise ImportError if there is no package for a compression."""
    _compressor(compression)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an OSError the name of the file that it lacks, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            number = error.errno if error.errno is not None else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
