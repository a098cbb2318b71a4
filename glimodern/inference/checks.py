"""Checks of single arguments: numbers, flags, strings and iterables. Errors name the argument."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from glimodern.display import short, typed


def _scalar(value: Any) -> Any:
    """Return the Python value of a NumPy scalar or a 0-d array or tensor; return other values unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_threshold(threshold: Any, where: str = "threshold") -> float:
    """Return a probability as a float. Accepts a real number in [0, 1], a NumPy scalar and a 0-d array or tensor."""
    value = _scalar(threshold)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: expected a probability in [0, 1], got {typed(threshold)}")
    try:
        probability = float(value)
    except OverflowError:  # a whole number or a fraction beyond all floats
        raise ValueError(f"{where}: expected a probability in [0, 1], got {short(value)}") from None
    if not 0.0 <= probability <= 1.0:  # also true for NaN
        raise ValueError(f"{where}: expected a probability in [0, 1], got {probability!r}")
    return probability


def check_flag(name: str, value: Any) -> bool:
    """Return a bool; accepts NumPy's too."""
    flag = _scalar(value)
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected True or False, got {typed(value)}")
    return flag


def check_count(name: str, value: Any, what: str, least: int = 1) -> int:
    """Return a whole number; accepts NumPy's too. what: the quantity in errors, such as "a number of spans"."""
    count = _scalar(value)
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"{name}: expected {what}, got {typed(value)}")
    if count < least:
        raise ValueError(f"{name}: expected {what} of at least {least}, got {int(count)}")
    return int(count)


def plain(value: Any) -> Any:
    """Return the Python value of a pyarrow scalar; return other values unchanged."""
    as_py = getattr(value, "as_py", None)
    return value if as_py is None else as_py()


def check_string(value: Any, where: str) -> str:
    """Return Unicode text as a plain str; accepts a subclass of str and a pyarrow scalar. where: its name in errors."""
    if type(value) is not str:
        value = plain(value)
        if not isinstance(value, str):
            remedy = "; decode it" if isinstance(value, bytes | bytearray) else ""
            raise TypeError(f"{where}: expected a string, got {typed(value)}{remedy}")
        value = str.__str__(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: expected Unicode text, got a lone surrogate {value[error.start]!r} at character "
                f"{error.start}; decode the text again with errors='replace', or remove it"
            ) from None
    return value


def items(values: Any, where: str, expected: str, dimensions: int = 1) -> Iterator[Any]:
    """Return an iterator over an ordered iterable with at most `dimensions` dimensions; TypeError for another value."""
    ndim = getattr(values, "ndim", 1)
    # looked up on the class, because index entries of a pandas Series are attributes of the instance
    table = hasattr(type(values), "columns") or not isinstance(ndim, int) or not 1 <= ndim <= dimensions
    if table or isinstance(values, str | bytes | bytearray | memoryview | Mapping | set | frozenset):
        remedy = "; give one column of it" if table else "; give its values()" if isinstance(values, Mapping) else ""
        if isinstance(values, set | frozenset):
            remedy = ", which has no order; give a list"
        raise TypeError(f"{where}: expected {expected}, got {typed(values)}{remedy}")
    try:
        return iter(values)
    except TypeError:
        raise TypeError(f"{where}: expected {expected}, got {typed(values)}") from None


def size_of(values: Any) -> int | None:
    """Return len(values), or None if it has no length."""
    try:
        return len(values)
    except (TypeError, NotImplementedError):  # tqdm over a generator has a __len__ that raises
        return None


def is_collection(value: Any) -> bool:
    return not isinstance(value, str | bytes | bytearray) and (
        hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    )
