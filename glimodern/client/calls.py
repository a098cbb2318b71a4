"""Arguments of a client's methods, checked and written as calls: requests of a bounded size.

Texts and labels are checked here, as `GLiModern.predict` checks them, before anything is sent. Values of options whose
bounds depend on the model are left to the server. An option that is not given is not sent: defaults are the server's.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypedDict, cast

from glimodern.display import short, typed
from glimodern.inference.checks import check_count, check_flag, check_string, items, plain
from glimodern.inference.label_sets import read_label_sets
from glimodern.inference.request import TEXTS
from glimodern.inference.thresholds import CALIBRATED, read_thresholds
from glimodern.inputs.labels import Labels, LabelSet, Thresholds

_ONE_TEXT = {"texts": "text"}  # a field's name in a request for one text
_Shared = dict[str, Any]
ENTITIES = "/v1/entities"
REDACT = "/v1/redact"


class TextOptions(TypedDict, total=False):
    """Options of a call, as keyword arguments.

    model: a name of `models()`; by default the server's first. adapter: a name of the model's adapters; by default
    none. timeout: seconds that the server may take for a request. The others are those of `GLiModern.predict`.
    """

    model: str
    adapter: str
    threshold: Thresholds
    flat: bool
    multi_label: bool
    top_k: int | None
    long_texts: Literal["windows", "cut", "error"]
    window: int | Literal["sentence"] | None
    context: int | None
    labels_per_prompt: int | None
    timeout: float


class Call(NamedTuple):
    """One request.

    path: below the server's address. body: JSON; None: a GET. texts: their number; None: one text, given as a string.
    first: the caller's index of the first text. timeout: seconds that the server may take; None: its own default.
    """

    path: str
    body: bytes | None = None
    texts: int | None = None
    first: int = 0
    timeout: float | None = None


class Bounds(NamedTuple):
    """The largest request. texts: their number. size: bytes of the body; a text that is larger alone goes alone."""

    texts: int
    size: int


def text_calls(
    path: str, texts: str | Iterable[str], labels: Labels, options: Mapping[str, Any], bounds: Bounds
) -> list[Call]:
    """Return the calls that ask for the entities of texts, in the texts' order: one call for a string.

    Raises TypeError or ValueError with the name of the argument.
    """
    shared = _options(path.rpartition("/")[2], options)
    timeout = shared.get("timeout")
    texts = plain(texts)
    if isinstance(texts, str):
        columns, more = _columns([check_string(texts, "texts")], labels, options)
        alone = {_ONE_TEXT.get(name, name): values[0] for name, values in columns.items()}
        return [Call(path, _json({**shared, **more, **alone}), timeout=timeout)]
    checked = [check_string(text, f"texts[{i}]") for i, text in enumerate(items(texts, "texts", TEXTS))]
    columns, more = _columns(checked, labels, options)
    shared |= more
    empty = {**shared, **{name: [] for name in columns}}
    calls = []
    for first, end in _parts(columns, bounds._replace(size=bounds.size - len(_json(empty)))):
        part = {name: values[first:end] for name, values in columns.items()}
        calls.append(Call(path, _json({**shared, **part}), end - first, first, timeout))
    return calls


def _columns(texts: list[str], labels: Labels, options: Mapping[str, Any]) -> tuple[dict[str, list[Any]], _Shared]:
    """Return what each text has of its own, and what all share, of texts, labels and threshold."""
    columns: dict[str, list[Any]] = {"texts": texts}
    shared: _Shared = {}
    label_sets = read_label_sets(labels, len(texts), lambda label_set, where: label_set)
    if isinstance(label_sets, LabelSet):
        shared["labels"] = _labels(label_sets)
    else:
        columns["labels"] = _each("labels", "label set", [_labels(label_set) for label_set in label_sets], len(texts))
    if "threshold" in options:
        threshold = _threshold(options["threshold"], len(texts))
        if isinstance(threshold, list):
            columns["threshold"] = _each("threshold", "threshold", threshold, len(texts))
        else:
            shared["threshold"] = threshold
    return columns, shared


def _each(name: str, what: str, values: list[Any], count: int) -> list[Any]:
    if len(values) != count:
        raise ValueError(f"{name}: expected one {what} per text ({count}), got {len(values)}")
    return values


def _labels(labels: LabelSet) -> list[str] | dict[str, str]:
    names, prompts = labels
    return list(names) if names == prompts else dict(zip(names, prompts, strict=True))


def _threshold(value: Any, count: int) -> Any:
    """Return a threshold of all texts as JSON holds it, or a list of one for each."""
    if isinstance(value, str) and value == CALIBRATED:
        return value
    threshold = read_thresholds(value, count, None)
    return threshold if isinstance(threshold, float | dict) else list(cast("Iterable[Any]", threshold))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parts(columns: Mapping[str, list[Any]], bounds: Bounds) -> Iterator[tuple[int, int]]:
    """Cut the texts into parts within the bounds; yield the indices of each part's first text and of its end."""
    first, size, count = 0, 0, len(columns["texts"])
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        more = sum(len(_json(value)) + 1 for value in row)  # and a comma
        if i > first and (i - first == bounds.texts or size + more > bounds.size):
            yield first, i
            first, size = i, 0
        size += more
    if count:
        yield first, count


def _options(function: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options but for the threshold as JSON holds them: plain numbers, whatever library they come from."""
    readers = {**_READERS, **(_REDACTION_READERS if function == "redact" else {})}
    known = ("threshold", *readers)
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            remedy = f"; did you mean {similar[0]}?" if similar else ""
            raise TypeError(f"{function}: unexpected keyword argument {name!r}: expected {', '.join(known)}{remedy}")
    return {name: readers[name](name, value) for name, value in given.items() if name in readers}


def _name(name: str, value: Any) -> str:
    return check_string(value, name)


def _count(name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value, "a whole number", 0)


def _window(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else _count(name, value)


def check_seconds(name: str, value: Any) -> float:
    """Return a time above 0 as a float. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number of seconds, got {typed(value)}")
    if not 0.0 < value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a finite number of seconds above 0, got {short(value)}")
    return float(value)


_READERS = {
    "model": _name,
    "adapter": _name,
    "flat": check_flag,
    "multi_label": check_flag,
    "top_k": _count,
    "long_texts": _name,
    "window": _window,
    "context": _count,
    "labels_per_prompt": _count,
    "timeout": check_seconds,
}
_REDACTION_READERS = {"style": _name}
