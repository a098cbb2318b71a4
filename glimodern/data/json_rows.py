"""Lines of text become JSON values, each with its place: JSON lines, one array, or pretty-printed objects."""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .lines import Line

_SPACE = re.compile(r"[ \t\n\r]*")


class Row(NamedTuple):
    """A value and its place: "file:7", or "file[7]" for an array's element, from 0. `fault`: why there is no value."""

    place: str
    value: Any
    fault: str | None = None


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError for broken JSON, for a key given twice, and for too deep a nesting."""
    value, end = _value(text, _after_space(text, 0))
    if _after_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def json_rows(lines: Iterable[Line], name: str) -> Iterator[Row]:
    """The rows of JSON lines, as they come; or of an array or pretty-printed objects, when all lines are read.

    A bad line of JSON lines is a row with a `fault`. A broken array or object raises ValueError with its line.
    """
    filled = (line for line in lines if line.fault is not None or not _blank(line.text))
    for first in itertools.islice(filled, 1):
        read, document = _look_ahead(first, filled)
        rest = itertools.chain(read, filled)
        yield from (_document(list(rest), name) if document else _one_a_line(rest, name))


def _look_ahead(first: Line, following: Iterator[Line]) -> tuple[list[Line], bool]:
    """(lines read, whether they begin an array or an object of several lines). Reads on only if `first` is no row."""
    text = first.text.strip()
    if first.fault is not None or text[0] not in "[{":
        return [first], False
    if text[0] == "[":
        return [first], True
    try:
        parse_json(text)
    except ValueError:
        read = [first, *itertools.islice(following, 1)]
        # A broken row is followed by another row. Inside an object, a line begins with a brace only after "[{:,".
        document = len(read) == 2 and (text[-1] in "[{:," or not read[1].text.lstrip().startswith("{"))
        return read, document
    return [first], False


def _one_a_line(lines: Iterable[Line], name: str) -> Iterator[Row]:
    for line in lines:
        place = f"{name}:{line.number}"
        if line.fault is not None:
            yield Row(place, None, line.fault)
            continue
        try:
            row = Row(place, parse_json(line.text))
        except ValueError as error:
            row = Row(place, None, f"expected one JSON object a line, got {show(line.text)} ({error})")
        yield row


def _document(lines: list[Line], name: str) -> Iterator[Row]:
    for line in lines:
        if line.fault is not None:
            raise ValueError(f"{name}:{line.number}: {line.fault}")
    text = "\n".join(line.text for line in lines)
    starts = list(itertools.accumulate((len(line.text) + 1 for line in lines[:-1]), initial=0))

    def place(at: int) -> str:
        return f"{name}:{lines[bisect_right(starts, at) - 1].number}"

    index, at = 0, _after_space(text, 0)
    while at < len(text):
        try:
            value, end = _value(text, at)
        except ValueError as error:
            where = error.pos if isinstance(error, json.JSONDecodeError) else at
            raise ValueError(
                f"{place(where)}: expected a JSON array of rows, or JSON objects, got broken JSON ({error})"
            ) from error
        elements = value if isinstance(value, list) else [value]
        for element in elements:
            yield Row(f"{name}[{index}]" if elements is value else place(at), element)
            index += 1
        at = _after_space(text, end)


def _value(text: str, at: int) -> tuple[Any, int]:
    """(the JSON value that begins at `at`, where it ends)."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {show(twice)} stands twice in one object")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _blank(text: str) -> bool:
    return not text or text.isspace()


def show(value: Any) -> str:
    """A value for an error message, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
