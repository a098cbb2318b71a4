"""Parquet files, in and out: columns, types and metadata are kept, and the entities are one more column.

Files are read by row groups, and a row group in batches. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimodern.cli.prediction import json_head
from glimodern.display import first_line, short

from .blocks import BLOCK_ROWS, Block, Row, Shard
from .inputs import InputFile
from .text_files import BrokenOff, Fields, TextFile, to_the_break

_BATCH_BYTES = 1 << 25  # about what the rows of a batch take
_GROUP_BYTES = 1 << 26  # rows of so many bytes, or a whole shard, make a row group of the output
_CODECS = {"gzip": "gzip", "zstd": "zstd", "none": "none"}


def check_pyarrow(path: str) -> None:
    """Raise ImportError if pyarrow is missing. path: the file that needs it."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{path}: Parquet needs the package pyarrow; pip install 'glimodern[parquet]'") from error


@dataclass(frozen=True)
class ParquetFile:
    """An input file in Parquet. output: its output format. codec: of its first column."""

    file: InputFile
    fields: Fields
    output: str
    codec: str

    @classmethod
    def opened(cls, file: InputFile, fields: Fields, output: str) -> ParquetFile:
        """Return a file whose schema has been checked. Raises ValueError, OSError and ImportError."""
        check_pyarrow(file.path)
        with _read(file.path) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            _check_schema(file, schema, fields)
            groups = metadata.num_row_groups
            codec = metadata.row_group(0).column(0).compression.lower() if groups else "snappy"
        return cls(file, fields, output, "none" if codec == "uncompressed" else codec)

    def schema(self) -> Any:
        """Return the schema of the rows."""
        with _read(self.file.path) as parquet:
            return parquet.schema_arrow

    def blocks(self, start: Shard, shard_rows: int) -> Iterator[Block]:
        """Yield the file's blocks from a shard on."""
        with _read(self.file.path) as parquet:
            self.file.check_unchanged()
            total = parquet.metadata.num_rows
            shard, row = start, start.number * shard_rows
            if row >= total:
                yield Block(shard, [], self.file.size, True, True, None)
                return
            for batch in to_the_break(_batches(parquet, row, self.file.path)):
                if isinstance(batch, BrokenOff):
                    yield Block(shard, [Row(self.file.path, fault=batch.fault)], self.file.size, True, True)
                    return
                at = 0
                while at < batch.num_rows:
                    rest = shard_rows - row % shard_rows
                    part = batch.slice(at, min(BLOCK_ROWS, rest))
                    rows = self._rows(part, row)
                    at, row = at + len(rows), row + len(rows)
                    ends_file = row == total
                    position = self.file.size * row // total
                    ends_shard = ends_file or row % shard_rows == 0
                    yield Block(shard, rows, position, ends_shard, ends_file, part)
                    if ends_shard:
                        shard = Shard(shard.file, shard.number + 1)

    def _rows(self, batch: Any, first: int) -> list[Row]:
        values = batch.column(batch.schema.get_field_index(self.fields.text)).to_pylist()
        rows = [self._row(value, f"{self.file.path}[{first + i}]") for i, value in enumerate(values)]
        if self.output != "jsonl":
            return rows
        return [
            row if row.fault is not None else row._replace(fault=fault, head=head)
            for row, (fault, head) in zip(rows, map(_json_head, batch.to_pylist()), strict=True)
        ]

    def _row(self, value: Any, place: str) -> Row:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                return Row(place, fault=f"expected UTF-8, got the byte 0x{byte:02x} in {short(value)}")
        if not isinstance(value, str):
            return Row(place, fault=f'expected a string "{self.fields.text}", got {short(value)}')
        return Row(place, value)


def _check_schema(file: InputFile, schema: Any, fields: Fields) -> None:
    """Raise ValueError for a schema without the text, or with a field of the output."""
    import pyarrow as pa

    if schema.names.count(fields.text) != 1:
        raise ValueError(
            f'{file.path}: expected one column "{fields.text}", got {short(schema.names)}; name the column of the text '
            "by --text-field"
        )
    type = schema.field(fields.text).type
    plain = type.value_type if pa.types.is_dictionary(type) else type
    kinds = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_null")
    if not any(getattr(pa.types, kind)(plain) for kind in kinds):
        raise ValueError(f'{file.path}: expected strings in the column "{fields.text}", got {type}; name another')
    for name in fields.output:
        if name in schema.names:
            raise ValueError(
                f'{file.path}: expected no column "{name}", which is one of the output, got one; choose another by '
                "--result-field"
            )


@contextlib.contextmanager
def _read(path: str) -> Iterator[Any]:
    """Open a file for reading in small parts. Raises ValueError for one that is not in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: expected a Parquet file, got another or a damaged one ({_reason(error)})") from error
    with parquet:
        yield parquet


def _batches(parquet: Any, first: int, path: str) -> Iterator[Any]:
    """Yield the rows from the first on, in batches that lie in one row group."""
    import pyarrow as pa

    before = 0
    for group in range(parquet.metadata.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        skip = min(max(first - before, 0), metadata.num_rows)
        before += metadata.num_rows
        if skip == metadata.num_rows:
            continue
        width = max(metadata.total_byte_size // max(metadata.num_rows, 1), 1)
        size = max(min(_BATCH_BYTES // width, 16 * BLOCK_ROWS), 1)
        try:
            for batch in parquet.iter_batches(batch_size=size, row_groups=[group]):
                left_out = min(skip, batch.num_rows)
                skip -= left_out
                if left_out < batch.num_rows:
                    yield batch.slice(left_out)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: expected a whole Parquet file, got damaged data in row group {group} ({_reason(error)}); "
                "create the file again"
            ) from error


def _json_head(row: dict[str, Any]) -> tuple[str | None, str]:
    """Return (fault or None, the JSON of a row without the closing brace)."""
    try:
        return json_head(json.loads(json.dumps(row, default=_plain)))
    except TypeError as error:
        return f"expected values with a JSON form, got {error}; leave out --format jsonl", ""


def _plain(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} {short(value)}")


def _reason(error: Exception) -> str:
    return first_line(error) or type(error).__name__


class ParquetWriter:
    """Writes the rows of one shard as a Parquet file."""

    def __init__(self, path: Path, source: TextFile | ParquetFile, compress: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.fields = source.fields
        if isinstance(source, ParquetFile):
            self.input_schema, codec = source.schema(), source.codec
        else:
            self.input_schema, codec = pa.schema([(name, pa.string()) for name in source.names]), "snappy"
        number = pa.int64()
        entity = pa.struct(
            [("start", number), ("end", number), ("text", pa.string()), ("label", pa.string()), ("score", pa.float64())]
        )
        self.entities = pa.list_(entity)
        schema = self.input_schema.append(pa.field(self.fields.result, self.entities))
        if self.fields.cut is not None:
            schema = schema.append(pa.field(self.fields.cut, number))
        self.schema = schema
        self.codec = codec if compress == "same" else _CODECS[compress]
        self.writer = pq.ParquetWriter(path, schema, compression=self.codec)
        self.pending: list[Any] = []

    def add(self, block: Block, answers: Sequence[Any]) -> None:
        """Add the rows of a block that did not fail. answers: their entities, None for a row that failed."""
        import pyarrow as pa

        kept = [i for i, entities in enumerate(answers) if entities is not None]
        if not kept:
            return
        if block.table is None:
            columns = zip(*(block.rows[i].head for i in kept), strict=True)
            arrays: list[Any] = [pa.array(column, pa.string()) for column in columns]
        else:
            arrays = block.table.columns if len(kept) == len(answers) else block.table.take(pa.array(kept)).columns
        arrays = [*arrays, pa.array([list(answers[i]) for i in kept], self.entities)]
        if self.fields.cut is not None:
            arrays.append(pa.array([answers[i].words_cut for i in kept], pa.int64()))
        self.pending.append(pa.record_batch(arrays, schema=self.schema))
        if sum(batch.nbytes for batch in self.pending) >= _GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self.pending, self.schema).combine_chunks()
        self.pending = []
        if table.num_rows:
            self.writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> None:
        """Write the rest and the footer."""
        self._write()
        self.writer.close()

    def abort(self) -> None:
        """Close without the rest; the file is of no use then."""
        self.writer.close()


def check_codec(file: InputFile, compress: str) -> None:
    """Raise ValueError for a compression that Parquet does not have."""
    if compress != "same" and compress not in _CODECS:
        raise ValueError(
            f"--compress: expected one of {', '.join(_CODECS)} for the Parquet output of {file.path}, got {compress}"
        )
