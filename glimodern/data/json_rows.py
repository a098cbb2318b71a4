"""Readers of JSON values with their position: from JSON lines, one array, or pretty-printed objects."""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from glimodern.display import short

from .lines import Line

_SPACE = re.compile(r"[ \t\n\r]*")


class Row(NamedTuple):
    """A JSON value. place: "file:7", or "file[7]" for an array element (from 0). fault: error if there is no value."""

    place: str
    value: Any
    fault: str | None = None


def read_utf8(file: Path, remedy: str) -> str:
    """Return the text of a file. Raises ValueError, with the file and the remedy, for bytes that are not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected UTF-8, got other bytes ({error.reason} at byte {error.start}); {remedy}"
        ) from error


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError for invalid JSON, duplicate keys and too deep nesting."""
    value, end = _value(text, _after_space(text, 0))
    if _after_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def json_rows(lines: Iterable[Line], name: str) -> Iterator[Row]:
    """Yield the rows of JSON lines lazily, or those of an array or of pretty-printed objects after reading all lines.

    A bad line in JSON lines yields a row with a `fault`. A broken array or object raises ValueError with its line.
    name: the input's name in positions.
    """
    filled = (line for line in lines if line.fault is not None or not _blank(line.text))
    for first in itertools.islice(filled, 1):
        read, document = _look_ahead(first, filled)
        rest = itertools.chain(read, filled)
        yield from (_document(list(rest), name) if document else (json_row(line, name) for line in rest))


def _look_ahead(first: Line, following: Iterator[Line]) -> tuple[list[Line], bool]:
    """Return (lines read, whether they begin an array or a multi-line object). Reads one more line only if needed."""
    text = first.text.strip()
    if first.fault is not None or text[0] not in "[{":
        return [first], False
    if text[0] == "[":
        return [first], True
    try:
        parse_json(text)
    except ValueError:
        read = [first, *itertools.islice(following, 1)]
        # after a broken row comes another row; inside an object, a line begins with a brace only after one of "[{:,"
        document = len(read) == 2 and (text[-1] in "[{:," or not read[1].text.lstrip().startswith("{"))
        return read, document
    return [first], False


def json_row(line: Line, name: str) -> Row:
    """Return the row of a line with one JSON value. name: the input's name in positions."""
    place = f"{name}:{line.number}"
    if line.fault is not None:
        return Row(place, None, line.fault)
    try:
        return Row(place, parse_json(line.text))
    except ValueError as error:
        return Row(place, None, f"expected one JSON object a line, got {short(line.text)} ({error})")


def _document(lines: list[Line], name: str) -> Iterator[Row]:
    for line in lines:
        if line.fault is not None:
            raise ValueError(f"{name}:{line.number}: {line.fault}")
    text = "\n".join(line.text for line in lines)
    starts = list(itertools.accumulate((len(line.text) + 1 for line in lines[:-1]), initial=0))

    def place(offset: int) -> str:
        return f"{name}:{lines[bisect_right(starts, offset) - 1].number}"

    index, offset = 0, _after_space(text, 0)
    while offset < len(text):
        try:
            value, end = _value(text, offset)
        except ValueError as error:
            error_offset = error.pos if isinstance(error, json.JSONDecodeError) else offset
            raise ValueError(
                f"{place(error_offset)}: expected a JSON array of rows, or JSON objects, got broken JSON ({error})"
            ) from error
        elements = value if isinstance(value, list) else [value]
        for element in elements:
            yield Row(f"{name}[{index}]" if elements is value else place(offset), element)
            index += 1
        offset = _after_space(text, end)


def _value(text: str, offset: int) -> tuple[Any, int]:
    """Return (the JSON value at `offset`, its end offset)."""
    try:
        return _DECODER.raw_decode(text, offset)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {short(duplicate)} occurs twice in one object")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _after_space(text: str, offset: int) -> int:
    match = _SPACE.match(text, offset)
    return match.end() if match else offset


def _blank(text: str) -> bool:
    return not text or text.isspace()
