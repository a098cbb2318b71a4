"""Type and range checks for settings dataclasses.

A settings class is a frozen dataclass that annotates its numbers with a range, as in `lr: Annotated[float, POSITIVE]`,
and calls `check_settings` in `__post_init__`. Values from Python, command lines and YAML pass the same check.
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
    """Interval [least, most] of finite numbers.

    open_least, open_most: exclude that end of the interval.
    remedy: advice that an error message gives for a number outside.
    """

    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False
    remedy: str = ""

    def __contains__(self, number: float) -> bool:
        above = number > self.least if self.open_least else number >= self.least
        below = number < self.most if self.open_most else number <= self.most
        return above and below and abs(number) <= sys.float_info.max  # a Python int may be larger

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
WIDTH = Range(1, 2**16)  # head width; the weights of a wider head do not fit into memory
MAX_INT = 2**31 - 1  # int32, which libraries use for counts


class SettingError(ValueError):
    """Invalid value of a setting; the message names the setting."""


def refuse_repeated(given: Sequence[str], flags: Iterable[str], values: str = "A B") -> None:
    """Raise SettingError if a flag that takes a list is given more than once; a parser would keep only the last list.

    given: command-line arguments. flags: names of the flags that take a list. values: example values for the message.
    """
    counts = Counter(argument.split("=", 1)[0].replace("_", "-") for argument in given if argument.startswith("--"))
    for flag in sorted(flags):
        if counts[flag] > 1:
            raise SettingError(f"{flag}: expected one flag with all its values ({flag} {values}), got several flags")


def check_settings(settings: Any) -> None:
    """Raise SettingError for the first field of a settings dataclass with a wrong type or a value out of range.

    Numbers must be finite. Text must not be empty unless the default is empty. Nested settings are not checked here;
    each one checks itself in its own `__post_init__`.
    """
    cls: Any = type(settings)
    hints = field_hints(cls)
    for field in fields(settings):
        value = getattr(settings, field.name)
        empty_is_default = field.default == ""
        check_value(field.name, hints[field.name], value, allow_empty=empty_is_default)


def check_value(name: str, hint: Any, value: Any, *, allow_empty: bool = False) -> None:
    """Raise a one-line SettingError unless the value has the type that the hint declares and lies in its Range."""
    ranges = [part for part in _flatten(hint) if isinstance(part, Range)]
    options = plain_types(hint)
    if not any(_is_a(value, option) for option in options):
        raise SettingError(f"{name}: expected {_describe(options, ranges)}, got {_describe_value(value)}")
    if _is_number(value):
        for allowed in ranges or [Range()]:
            if value not in allowed:
                remedy = f"; {allowed.remedy}" if allowed.remedy else ""
                raise SettingError(f"{name}: expected {_describe(options, ranges or [allowed])}, got {value!r}{remedy}")
        if float not in options and all(allowed.most == math.inf for allowed in ranges) and value > MAX_INT:
            raise SettingError(f"{name}: expected a whole number <= {MAX_INT}, got {value!r}")
    texts = value if isinstance(value, (tuple, list)) else [value]
    if not allow_empty and any(isinstance(text, str) and not text.strip() for text in texts):
        raise SettingError(f"{name}: expected text, got an empty string; leave the setting out")


@cache
def field_hints(settings: Hashable) -> dict[str, Any]:
    """Return the declared type of each field, with its Range."""
    declared: Any = settings
    hints = get_type_hints(declared, include_extras=True)
    return {field.name: hints[field.name] for field in fields(declared)}


def default_of(settings: type, name: str) -> Any:
    """Return the default of a field."""
    (field,) = (field for field in fields(settings) if field.name == name)
    return field.default


def _flatten(hint: Any) -> list[Any]:
    """Return the plain types, literals and ranges in a hint; Annotated and unions are expanded."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metadata = get_args(hint)
        return _flatten(inner) + [item for item in metadata if isinstance(item, Range)]
    if origin in (Union, types.UnionType):
        return [part for option in get_args(hint) for part in _flatten(option)]
    return [hint]


def plain_types(hint: Any) -> list[Any]:
    """Return the types and literals that a declared type allows, without its Range."""
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
    """Return the allowed types and ranges in words, such as "a whole number >= 1 or nothing"."""
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


def _describe_value(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
