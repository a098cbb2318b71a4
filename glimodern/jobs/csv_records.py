"""Records of CSV files, as text and as fields.

A field in double quotes may hold the delimiter, line ends and doubled quotes (RFC 4180); a quote inside another field
is a character like others. A quote that is never closed would take the rest of the file into one field: such a line is
a record with a fault, and reading goes on after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from glimodern.data.lines import Line
from glimodern.display import short

_LONGEST = 1 << 24  # characters of the lines that a quoted field may add to its first


class Record(NamedTuple):
    """One record: the number of its first line, its text without line end, that end, its fields, and its fault."""

    number: int
    text: str
    end: str
    fields: list[str]
    fault: str | None = None


class _BadRecordError(Exception):
    """A record whose quotes are wrong."""


def read_records(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    """Yield the records of lines with their ends; empty lines are none."""
    waiting: deque[Line] = deque()
    while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
        text, end = _without_end(line.text)
        if not text:
            continue
        if line.fault is not None:
            yield Record(line.number, text, end, [], line.fault)
            continue
        parts, fault, added, fields = [line], None, 0, None
        try:
            fields = split_fields(text, delimiter)
            while fields is None and added <= _LONGEST:
                following = waiting.popleft() if waiting else next(lines, None)
                if following is None:
                    break
                parts.append(following)
                added += len(following.text)
                fault = fault or following.fault
                if following.text.count('"') % 2:  # with an even number the field stays open
                    text, end = _without_end("".join(part.text for part in parts))
                    fields = split_fields(text, delimiter)
        except _BadRecordError as error:
            yield Record(line.number, text, end, [], str(error))
            continue
        if fields is None:
            waiting.extendleft(reversed(parts[1:]))
            text, end = _without_end(line.text)
            fault = f"expected a quote that closes what one opens in {short(text)}, got none; double a quote in a field"
        yield Record(line.number, text, end, fields or [], fault)


def split_fields(text: str, delimiter: str) -> list[str] | None:
    """Return the fields of a record without its line end; None if a quote is not closed.

    Raises _BadRecordError for characters between a closing quote and the delimiter.
    """
    if '"' not in text:
        return text.split(delimiter)
    fields, at = [], 0
    while True:
        if text.startswith('"', at):
            end = text.find('"', at + 1)
            while text.startswith('"', end + 1) and end >= 0:
                end = text.find('"', end + 2)
            if end < 0:
                return None
            fields.append(text[at + 1 : end].replace('""', '"'))
            at = end + 1
            if at < len(text) and not text.startswith(delimiter, at):
                got = short(text[at : at + 20])
                raise _BadRecordError(f"expected {delimiter!r} or the line's end after a closing quote, got {got}")
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            fields.append(text[at:end])
            at = end
        if at >= len(text):
            return fields
        at += 1


def quoted(value: str, delimiter: str) -> str:
    """Return a field as a record holds it, in quotes if it needs them."""
    if any(character in value for character in (delimiter, '"', "\n", "\r")):
        return '"' + value.replace('"', '""') + '"'
    return value


def _without_end(text: str) -> tuple[str, str]:
    """Return (a line without its end, that end)."""
    body = text[:-1] if text.endswith("\n") else text
    body = body[:-1] if body.endswith("\r") else body
    return body, text[len(body) :]
