"""Arguments of a client's methods, checked and written as calls: requests of a bounded size.

Texts and labels are checked here, as `GLiModern.predict` checks them, before anything is sent. Values of options whose
bounds depend on the model are left to the server. An option that is not given is not sent: defaults are the server's.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from glimodern.display import typed
from glimodern.inference.checks import check_count, check_flag, check_string, items, plain
from glimodern.inference.label_sets import read_labels
from glimodern.inference.thresholds import CALIBRATED, read_threshold
from glimodern.inputs.labels import LabelArgument, TextThreshold

_TEXTS = "a string or an iterable of strings"
ENTITIES = "/v1/entities"
REDACT = "/v1/redact"


class TextOptions(TypedDict, total=False):
    """Options of a call, as keyword arguments.

    model: a name of `models()`; by default the server's first. timeout: seconds that the server may take for a request.
    The others are those of `GLiModern.predict`.
    """

    model: str
    threshold: TextThreshold | Literal["calibrated"]
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
    path: str, texts: str | Iterable[str], labels: LabelArgument, options: Mapping[str, Any], bounds: Bounds
) -> list[Call]:
    """Return the calls that ask for the entities of texts, in the texts' order: one call for a string.

    Raises TypeError or ValueError with the name of the argument.
    """
    function = path.rpartition("/")[2]
    names, prompts = read_labels(labels)
    body: dict[str, Any] = {"labels": list(names) if names == prompts else dict(zip(names, prompts, strict=True))}
    body |= {name: _option(function, name, value) for name, value in options.items()}
    timeout = body.get("timeout")
    texts = plain(texts)
    if isinstance(texts, str):
        return [Call(path, _json({**body, "text": check_string(texts, "texts")}), timeout=timeout)]
    checked = [check_string(text, f"texts[{i}]") for i, text in enumerate(items(texts, "texts", _TEXTS))]
    parts = _parts(checked, bounds._replace(size=bounds.size - len(_json({**body, "texts": []}))))
    return [Call(path, _json({**body, "texts": part}), len(part), first, timeout) for first, part in parts]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parts(texts: list[str], bounds: Bounds) -> Iterator[tuple[int, list[str]]]:
    """Cut a list of texts into parts within the bounds; yield each with the index of its first text."""
    first, size = 0, 0
    for i, text in enumerate(texts):
        more = len(_json(text)) + 1  # and a comma
        if i > first and (i - first == bounds.texts or size + more > bounds.size):
            yield first, texts[first:i]
            first, size = i, 0
        size += more
    if texts:
        yield first, texts[first:]


def _option(function: str, name: str, value: Any) -> Any:
    """Return an option as JSON holds it: plain numbers, whatever library they come from."""
    known = {**_READERS, **(_REDACTION_READERS if function == "redact" else {})}
    if name not in known:
        similar = difflib.get_close_matches(name, known, 1)
        remedy = f"; did you mean {similar[0]}?" if similar else ""
        raise TypeError(f"{function}: unexpected keyword argument {name!r}: expected {', '.join(known)}{remedy}")
    return known[name](name, value)


def _name(name: str, value: Any) -> str:
    return check_string(value, name)


def _threshold(name: str, value: Any) -> Any:
    if isinstance(value, str) and value != CALIBRATED:
        raise TypeError(
            f'{name}: expected a probability, a mapping label -> probability, or "{CALIBRATED}", got {typed(value)}'
        )
    return value if isinstance(value, str) else read_threshold(value, name)


def _count(name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value, "a whole number", 0)


def _window(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else _count(name, value)


def check_seconds(name: str, value: Any) -> float:
    """Return a time above 0 as a float. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number of seconds, got {typed(value)}")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number of seconds above 0, got {value!r}")
    return float(value)


_READERS = {
    "model": _name,
    "threshold": _threshold,
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
