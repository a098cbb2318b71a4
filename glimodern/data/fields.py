"""Fields of JSON rows, and the errors of rows that are no example."""

from __future__ import annotations

from typing import Any

from glimodern.display import short


class BadRowError(Exception):
    """A row that cannot be read. where: a more exact position than the row's, if known."""

    def __init__(self, reason: str, *, where: str | None = None, out_of_range: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.out_of_range = out_of_range


class LeftOutError(Exception):
    """A row that holds no gold annotation, such as a task that nobody annotated. reason: what readers count it as."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def words_field(row: dict[str, Any], key: str) -> list[str]:
    """Return the list of words of a row. Raises BadRowError."""
    words = row[key]
    if not isinstance(words, list):
        raise BadRowError(f'"{key}": expected a list of words, got {short(words)}')
    for word in words:
        text_field(word, f'a word of "{key}"')
    return words


def text_field(value: Any, what: str) -> str:
    """Return a string without lone surrogates. what: its name in errors. Raises BadRowError."""
    if not isinstance(value, str):
        raise BadRowError(f"{what}: expected a string, got {short(value)}")
    # half of a surrogate pair is legal in JSON ("\ud83d"), but it is no character, and tokenizers refuse it
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRowError(f"{what}: expected Unicode text, got half of a surrogate pair in {short(value)}")
    return value


def label_field(label: Any, entry: Any) -> str:
    """Return a label. entry: the entity it stands in, for errors. Raises BadRowError."""
    if not isinstance(label, str) or not label.strip():
        raise BadRowError(f"label: expected a string that is not blank, got {short(label)} in {short(entry)}")
    return text_field(label, "label")


def types_field(row: dict[str, Any], *keys: str) -> tuple[str, ...] | None:
    """Return the entity types of the first of `keys` that a row has; None for none. Raises BadRowError."""
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            raise BadRowError(f'"{key}": expected a list of entity types, got {short(value)}')
        return tuple(dict.fromkeys(label_field(label, value) for label in value))
    return None
