"""What a setting may hold, declared beside the field and checked in one place.

A settings class is a frozen dataclass whose numbers carry their range, as in `lr: Annotated[float, POSITIVE]`, and
whose `__post_init__` calls `check_settings`. Values from Python, from a command line and from YAML meet the same check.
"""

from __future__ import annotations

import math
import sys
import types
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers from least to most; an open end is excluded. remedy: what to do about a number outside."""

    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False
    remedy: str = ""

    def __contains__(self, number: float) -> bool:
        above = number > self.least if self.open_least else number >= self.least
        below = number < self.most if self.open_most else number <= self.most
        return above and below and abs(number) <= sys.float_info.max  # a whole number may be larger, in Python

    def __str__(self) -> str:
        bounds = []
        if self.least > -math.inf:
            bounds.append(f"{'>' if self.open_least else '>='} {_plain(self.least)}")
        if self.most < math.inf:
            bounds.append(f"{'<' if self.open_most else '<='} {_plain(self.most)}")
        return " and ".join(bounds) or "finite"


def _plain(number: float) -> str:
    return f"{int(number)}" if number == int(number) else f"{number:g}"


POSITIVE = Range(0, open_least=True)
AT_LEAST_ONE = Range(1)
NOT_NEGATIVE = Range(0)
PROBABILITY = Range(0, 1)
SHARE = Range(0, 1, open_most=True)
WIDTH = Range(1, 2**16)  # of a head; the weights of a wider one do not fit the memory
MOST_COUNTED = 2**31 - 1  # what libraries that are given a whole number take for one


class SettingError(ValueError):
    """A setting that holds what it may not; the message names it."""


def refuse_repeated(given: Sequence[str], flags: Iterable[str], values: str = "A B") -> None:
    """SettingError for a flag with a list of values that is given twice, of which a parser would keep the last."""
    counts = Counter(argument.split("=", 1)[0].replace("_", "-") for argument in given if argument.startswith("--"))
    for flag in sorted(flags):
        if counts[flag] > 1:
            raise SettingError(f"{flag}: expected one flag with all its values ({flag} {values}), got several flags")


def check_settings(settings: Any) -> None:
    """SettingError for the first field of a settings dataclass whose value has another type or lies outside its range.

    Numbers must be finite. Text must not be empty, unless the default is. Fields that are settings themselves have
    been checked when they were made.
    """
    kind: Any = type(settings)
    hints = field_hints(kind)
    for field in fields(settings):
        value = getattr(settings, field.name)
        empty_is_default = field.default == ""
        check_value(field.name, hints[field.name], value, allow_empty=empty_is_default)


def check_value(name: str, hint: Any, value: Any, *, allow_empty: bool = False) -> None:
    """SettingError, in one line, unless the value has the type that the hint declares and lies in its Range."""
    ranges = [part for part in _flatten(hint) if isinstance(part, Range)]
    options = plain_types(hint)
    if not any(_is_a(value, option) for option in options):
        raise SettingError(f"{name}: expected {_describe(options, ranges)}, got {_shown(value)}")
    if _is_number(value):
        for allowed in ranges or [Range()]:
            if value not in allowed:
                remedy = f"; {allowed.remedy}" if allowed.remedy else ""
                raise SettingError(f"{name}: expected {_describe(options, ranges or [allowed])}, got {value!r}{remedy}")
        if float not in options and all(allowed.most == math.inf for allowed in ranges) and value > MOST_COUNTED:
            raise SettingError(f"{name}: expected a whole number <= {MOST_COUNTED}, got {value!r}")
    texts = value if isinstance(value, (tuple, list)) else [value]
    if not allow_empty and any(isinstance(text, str) and not text.strip() for text in texts):
        raise SettingError(f"{name}: expected text, got an empty string; leave the setting out")


@cache
def field_hints(settings: Hashable) -> dict[str, Any]:
    """The declared type of each field, with its Range."""
    declared: Any = settings
    hints = get_type_hints(declared, include_extras=True)
    return {field.name: hints[field.name] for field in fields(declared)}


def default_of(settings: type, name: str) -> Any:
    """The default of a field."""
    (field,) = (field for field in fields(settings) if field.name == name)
    return field.default


def _flatten(hint: Any) -> list[Any]:
    """The plain types, literals and ranges in a hint: Annotated and unions taken apart."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        return _flatten(inner) + [note for note in notes if isinstance(note, Range)]
    if origin in (Union, types.UnionType):
        return [part for option in get_args(hint) for part in _flatten(option)]
    return [hint]


def plain_types(hint: Any) -> list[Any]:
    """The types and literals that a declared type allows, without its Range."""
    return [part for part in _flatten(hint) if not isinstance(part, Range)]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value)
    return isinstance(value, get_origin(hint) or hint)


def _describe(options: list[Any], ranges: list[Range]) -> str:
    described = []
    for option in options:
        if get_origin(option) is Literal:
            choices = [repr(choice) for choice in get_args(option)]
            described.append(choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}")
        elif get_origin(option) is tuple:
            described.append("a list of texts")
        elif option in (int, float):
            number = "a whole number" if option is int else "a number"
            described.append(" ".join([number, *(str(allowed) for allowed in ranges)]))
        else:
            names = {str: "text", bool: "true or false", type(None): "nothing"}
            described.append(names.get(option, getattr(get_origin(option) or option, "__name__", str(option))))
    return " or ".join(described)


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
