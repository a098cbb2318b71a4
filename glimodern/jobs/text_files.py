"""Rows of JSON, text and CSV files, and the lines of output that they become.

The values of a row are never read and written anew where its own text can be copied: a line of JSON gets its entities
before its closing brace, and a CSV record gets a column at its end.
"""

from __future__ import annotations

import contextlib
import json.encoder
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from glimodern.cli.prediction import constant_fault, escaped, json_head, json_line, row_fault, unicode_fault
from glimodern.data.json_rows import Row as JsonRow
from glimodern.data.json_rows import json_row, json_rows
from glimodern.data.lines import Line, open_input, read_lines
from glimodern.display import short

from .blocks import Block, Row, Shard, cut_blocks
from .csv_records import Record, quoted, read_records
from .inputs import InputFile

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_json_string = json.encoder.encode_basestring
_json_float = float.__repr__  # that of NumPy's subclass names the type


class Fields(NamedTuple):
    """Names of fields: the text, the entities, and the words that were not read (None: the output has no such)."""

    text: str
    result: str
    cut: str | None

    @property
    def output(self) -> tuple[str, ...]:
        """Names of the fields that the job adds."""
        return (self.result,) if self.cut is None else (self.result, self.cut)


class BrokenOff(NamedTuple):
    """The unit that ends a file that cannot be read to its end."""

    fault: str


@dataclass(frozen=True)
class TextFile:
    """An input file of text.

    output: its output format. header: of a CSV file, None in an empty one.
    """

    file: InputFile
    fields: Fields
    output: str
    header: Record | None = None

    @classmethod
    def opened(cls, file: InputFile, fields: Fields, output: str) -> TextFile:
        """Return a file whose beginning has been read and checked. Raises ValueError, OSError and ImportError."""
        source = cls(file, fields, output)
        with contextlib.ExitStack() as stack:
            units, _ = source._units(stack)
            first = next(units, None)
        if isinstance(first, BrokenOff):
            raise ValueError(first.fault)
        if file.format not in _DELIMITERS or first is None:
            return source
        _check_header(file, first, fields, output)
        return cls(file, fields, output, first)

    def blocks(self, start: Shard, shard_rows: int) -> Iterator[Block]:
        """Yield the file's blocks from a shard on."""
        with contextlib.ExitStack() as stack:
            units, stream = self._units(stack)
            self.file.check_unchanged(stream.fileno())
            if self.header is not None:
                next(units, None)
            yield from cut_blocks(units, self._parse, start, shard_rows, stream.tell)

    def _units(self, stack: contextlib.ExitStack) -> tuple[Iterator[Any], BinaryIO]:
        """Return (the rows, not read yet, the stream they come from)."""
        stream = stack.enter_context(open_input(self.file.path))
        format = self.file.format
        lines = read_lines(stream, self.file.path, keep_ends=format in _DELIMITERS)
        units: Iterator[Any] = lines
        if format == "jsonl":
            units = (line for line in lines if line.fault is not None or line.text.strip())
        elif format == "json":
            units = json_rows(lines, self.file.path)
        elif format in _DELIMITERS:
            units = read_records(lines, _DELIMITERS[format])
        return to_the_break(units), stream

    def _parse(self, unit: Any) -> Row:
        if isinstance(unit, BrokenOff):
            return Row(self.file.path, fault=unit.fault)
        if isinstance(unit, Record):
            return self._record(unit)
        if isinstance(unit, JsonRow):
            return self._json_value(unit)
        return self._json_line(unit) if self.file.format == "jsonl" else self._text_line(unit)

    def _json_line(self, line: Line) -> Row:
        row = json_row(line, self.file.path)
        fault = row.fault or row_fault(row.value, self.fields.text, self.fields.output)
        if fault is not None:
            return Row(row.place, fault=fault)
        text = row.value[self.fields.text]
        fault = constant_fault(line.text, row.value) or unicode_fault(text, row.value)
        return Row(row.place, text, fault, line.text.strip()[:-1].rstrip())

    def _json_value(self, row: JsonRow) -> Row:
        fault = row.fault or row_fault(row.value, self.fields.text, self.fields.output)
        if fault is not None:
            return Row(row.place, fault=fault)
        fault, head = json_head(row.value)
        return Row(row.place, row.value[self.fields.text], fault, head)

    def _text_line(self, line: Line) -> Row:
        place = f"{self.file.path}:{line.number}"
        if line.fault is not None:
            return Row(place, fault=line.fault)
        head = [line.text] if self.output == "parquet" else json_head({self.fields.text: line.text})[1]
        return Row(place, line.text, None, head)

    def _record(self, record: Record) -> Row:
        place = f"{self.file.path}:{record.number}"
        names = self.names
        if record.fault is not None:
            return Row(place, fault=record.fault)
        if len(record.fields) != len(names):
            return Row(place, fault=f"expected {len(names)} fields, as the header has, got {len(record.fields)}")
        text = record.fields[names.index(self.fields.text)]
        head: Any = record.fields
        if self.output == self.file.format:
            head = record.text
        elif self.output in _DELIMITERS:
            delimiter = _DELIMITERS[self.output]
            head = delimiter.join(quoted(value, delimiter) for value in record.fields)
        elif self.output == "jsonl":
            head = json_head(dict(zip(names, record.fields, strict=True)))[1]
        return Row(place, text, None, head, record.end or "\n")

    @property
    def names(self) -> list[str]:
        """Names of the file's columns."""
        if self.file.format not in _DELIMITERS:
            return [self.fields.text]
        return [] if self.header is None else self.header.fields


def first_line(source: TextFile) -> str:
    """Return what an output file begins with: the header of CSV."""
    if source.output not in _DELIMITERS or source.header is None:
        return ""
    delimiter = _DELIMITERS[source.output]
    own = source.output == source.file.format
    head = source.header.text if own else delimiter.join(quoted(name, delimiter) for name in source.names)
    added = "".join(delimiter + quoted(name, delimiter) for name in source.fields.output)
    return head + added + (source.header.end or "\n")


def output_lines(rows: Sequence[Row], answers: Sequence[Any], fields: Fields, output: str) -> str:
    """Return the output of rows in a format of text. answers: their entities, None for a row that failed."""
    kept = [(row, found) for row, found in zip(rows, answers, strict=True) if found is not None]
    if output == "jsonl":
        name, cut = fields.result, fields.cut
        return "".join(json_line(row.head, name, entities_json(found), found.words_cut, cut) for row, found in kept)
    delimiter, lines = _DELIMITERS[output], []
    for row, found in kept:
        columns = [row.head, quoted(escaped(entities_json(found)), delimiter)]
        if fields.cut is not None:
            columns.append(str(found.words_cut))
        lines.append(delimiter.join(columns) + row.tail)
    return "".join(lines)


def entities_json(entities: Sequence[Mapping[str, Any]]) -> str:
    """Return what `json.dumps(entities, ensure_ascii=False)` does, in half its time; see `Entities` for the keys."""
    dicts = [
        f'{{"start": {entity["start"]}, "end": {entity["end"]}, "text": {_json_string(entity["text"])}, '
        f'"label": {_json_string(entity["label"])}, "score": {_json_float(entity["score"])}}}'
        for entity in entities
    ]
    return f"[{', '.join(dicts)}]"


def to_the_break(units: Iterator[Any]) -> Iterator[Any]:
    """Yield units; what ends a file early, such as truncated compressed data, is the last one."""
    try:
        yield from units
    except ValueError as error:
        yield BrokenOff(f"the rest of the file was not read: {error}")


def _check_header(file: InputFile, header: Record, fields: Fields, output: str) -> None:
    """Raise ValueError for a header that cannot be read, or that lacks the text or has a field of the output."""
    where = f"{file.path}:{header.number}"
    if header.fault is not None:
        raise ValueError(f"{where}: {header.fault}")
    names = header.fields
    if names.count(fields.text) != 1:
        raise ValueError(
            f'{where}: expected a header with one column "{fields.text}", got {short(names)}; name the column of the '
            "text by --text-field"
        )
    for name in fields.output:
        if name in names:
            raise ValueError(
                f'{where}: expected a header without the output column "{name}", got one; choose another by '
                "--result-field"
            )
    if output not in _DELIMITERS and len(set(names)) < len(names):
        raise ValueError(f"{where}: expected a header without equal names for --format {output}, got {short(names)}")
