"""Fields of JSON rows and files, and the errors of rows that are no example."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin

from glimodern.display import short
from glimodern.settings import SettingError, check_value, field_hints, plain_types

from .json_rows import parse_json

T = TypeVar("T")


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


def read_document(cls: type[T], text: str, name: str, form: str, remedy: str) -> T:
    """Build a dataclass from the text of a JSON file whose field "format" must be `form`. See `read_fields`.

    name: the file's name in messages. Raises ValueError, with the file, the field and the remedy.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON, got {len(text)} characters ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected an object of fields, got {short(content)}; {remedy}")
    if content.get("format") != form:
        raise ValueError(f"{name}: format: expected {form!r}, got {short(content.get('format'))}; {remedy}")
    del content["format"]
    try:
        return read_fields(cls, content)
    except SettingError as error:
        raise ValueError(f"{name}: {error}; {remedy}") from error


def read_fields(cls: type[T], content: Any, where: str = "") -> T:
    """Build a dataclass from a JSON object with the same fields; nested dataclasses and tuples of them too.

    where: the object's name in messages. Raises SettingError for a missing or unknown field and for a wrong value.
    """
    if not isinstance(content, dict):
        raise SettingError(f"{where + ': ' if where else ''}expected an object of fields, got {short(content)}")
    prefix, known = f"{where}." if where else "", {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in [*known, *content]:
        if name not in content:
            raise SettingError(f"{prefix}{name}: expected a value, got none")
        if name not in known:
            raise SettingError(f"{prefix}{name}: expected one of {', '.join(known)}, got another field")
    declared: Any = cls
    hints = field_hints(declared)
    return cls(**{
        name: _read_value(hints[name], content[name], f"{prefix}{name}", allow_empty=known[name].default == "")
        for name in known
    })  # fmt: skip


def _read_value(hint: Any, value: Any, where: str, *, allow_empty: bool = False) -> Any:
    """Return a JSON value as a declared type: a dataclass, a tuple, or what `check_value` checks."""
    for option in plain_types(hint) if value is not None else ():
        if is_dataclass(option):
            return read_fields(option, value, where)  # type: ignore[arg-type]
        if get_origin(option) is tuple:
            if not isinstance(value, list):
                raise SettingError(f"{where}: expected a list, got {short(value)}")
            inner = get_args(option)[0]
            return tuple(_read_value(inner, item, f"{where}[{index}]") for index, item in enumerate(value))
    check_value(where, hint, value, allow_empty=allow_empty)
    return value
