"""Request bodies: JSON objects, read within limits, with every field checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from glimodern.data.json_rows import parse_json
from glimodern.display import short
from glimodern.inference.redaction import STYLES, Style
from glimodern.settings import AT_LEAST_ONE, POSITIVE, check_settings

from .errors import AnswerError

OPTIONS = ("threshold", "flat", "multi_label", "top_k", "long_texts", "window", "context", "labels_per_prompt")
"""Fields that are arguments of `predict`, beside texts and labels."""

_COMMON = ("model", "adapter", "text", "texts", "labels", *OPTIONS, "timeout")
_FIELD_LENGTH = 80  # characters of an unknown field that are compared with the known ones
ENTITIES_FIELDS, REDACT_FIELDS = frozenset(_COMMON), frozenset((*_COMMON, "style"))


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    max_body: Annotated[int, AT_LEAST_ONE] = 4 * 2**20
    """Maximum bytes of a request."""
    max_texts: Annotated[int, AT_LEAST_ONE] = 1000
    """Maximum texts of a request."""
    max_words: Annotated[int, AT_LEAST_ONE] = 20_000
    """Maximum words of a text."""
    max_labels: Annotated[int, AT_LEAST_ONE] = 500
    """Maximum labels of a text."""
    max_label_length: Annotated[int, AT_LEAST_ONE] = 1000
    """Maximum characters of a label or a description."""
    max_entities: Annotated[int, AT_LEAST_ONE] = 50_000
    """Maximum entities of an answer."""
    body_timeout: Annotated[float, POSITIVE] = 30.0
    """Seconds in which the bytes of a request must arrive."""
    timeout: Annotated[float, POSITIVE] = 60.0
    """Seconds after which a request is given up; also the maximum of its own field "timeout"."""

    def __post_init__(self) -> None:
        check_settings(self)


class EntitiesBody(NamedTuple):
    """A checked body. texts: a string if `one_text`. options: keyword arguments of `predict`."""

    model: str | None
    adapter: str | None
    texts: str | list[Any]
    labels: Any
    options: dict[str, Any]
    timeout: float
    style: Style

    @property
    def one_text(self) -> bool:
        return isinstance(self.texts, str)


def read_body(content: bytes, limits: Limits, *, redacts: bool) -> EntitiesBody:
    """Read and check the body of a request for entities, or for a redacted text. Raises AnswerError.

    Types and ranges that `predict` checks are left to it.
    """
    body = _json_object(content)
    known = REDACT_FIELDS if redacts else ENTITIES_FIELDS
    for name in body:
        if name not in known:
            near = difflib.get_close_matches(name[:_FIELD_LENGTH], known, 1)
            remedy = f"do you mean {near[0]}?" if near else f"the fields are {', '.join(sorted(known))}"
            raise AnswerError.of(short(name)[1:-1], "a known field", "an unknown one", remedy)
    texts = _texts(body, limits)
    _check_labels(body.get("labels"), limits)
    options = {name: body[name] for name in OPTIONS if body.get(name) is not None}
    if redacts:
        _check_redaction(options)
    return EntitiesBody(
        _optional_string(body, "model"), _optional_string(body, "adapter"), texts, body["labels"], options,
        _timeout(body, limits), _style(body),
    )  # fmt: skip


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise AnswerError.of("body", "JSON in UTF-8", f"the byte 0x{content[error.start]:02x}", status=400) from error
    try:
        body = parse_json(text)
    except ValueError as error:
        raise AnswerError.of("body", "a JSON object", f"broken JSON ({error})", status=400) from error
    if not isinstance(body, dict):
        raise AnswerError.of("body", "a JSON object", _shown(body), status=400)
    return body


def _texts(body: dict[str, Any], limits: Limits) -> str | list[Any]:
    given = [name for name in ("text", "texts") if body.get(name) is not None]
    if len(given) != 1:
        raise AnswerError.of("text", "either text or texts", "both" if given else "neither")
    value = body[given[0]]
    if given == ["text"]:
        if not isinstance(value, str):
            raise AnswerError.of("text", "a string", _shown(value), "send several texts as texts")
        return value
    if not isinstance(value, list):
        raise AnswerError.of("texts", "a list of strings", _shown(value), "send one text as text")
    if len(value) > limits.max_texts:
        raise AnswerError.of(
            "texts", f"at most {limits.max_texts} texts", str(len(value)), "send them in several requests", 413
        )
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise AnswerError.of(f"texts[{i}]", "a string", _shown(text))
    return value


def _check_labels(labels: Any, limits: Limits) -> None:
    """Check numbers and lengths of labels; `predict` checks the rest."""
    if not isinstance(labels, list | dict):
        raise AnswerError.of("labels", "a list of labels, or an object {label: description}", _shown(labels))
    per_text = isinstance(labels, list) and any(isinstance(label, list | dict) for label in labels)
    sets = {f"labels[{i}]": label_set for i, label_set in enumerate(labels)} if per_text else {"labels": labels}
    for name, label_set in sets.items():
        if not isinstance(label_set, list | dict):
            raise AnswerError.of(name, "a list of labels, as for the other texts", _shown(label_set))
        if len(label_set) > limits.max_labels:
            raise AnswerError.of(
                name, f"at most {limits.max_labels} labels", str(len(label_set)), "ask for fewer at a time", 413
            )
        described = label_set.items() if isinstance(label_set, Mapping) else ((label, None) for label in label_set)
        for i, (label, description) in enumerate(described):
            for text in (label, description):
                if isinstance(text, str) and len(text) > limits.max_label_length:
                    where = f"{name}[{i}]" if description is None else f"{name}: key {i}"
                    most = f"at most {limits.max_label_length} characters"
                    raise AnswerError.of(where, most, str(len(text)), "shorten it")


def _optional_string(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise AnswerError.of(name, "a string", _shown(value))
    return value


def _timeout(body: dict[str, Any], limits: Limits) -> float:
    value = body.get("timeout")
    if value is None:
        return limits.timeout
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= limits.timeout:
        raise AnswerError.of("timeout", f"seconds > 0 and <= {limits.timeout:g}", _shown(value))
    return float(value)


def _style(body: dict[str, Any]) -> Style:
    for style in STYLES:
        if style == body.get("style", STYLES[0]):
            return style
    raise AnswerError.of("style", f"one of {', '.join(STYLES)}", _shown(body["style"]))


def _check_redaction(options: dict[str, Any]) -> None:
    """Refuse options with which a text cannot be redacted, or not all of it."""
    for name, value in (("flat", True), ("multi_label", False), ("top_k", None)):
        if options.get(name, value) is not value:
            raise AnswerError.of(name, f"{_shown(value)} for a redaction", _shown(options[name]), "leave it out")
    if options.get("long_texts") == "cut":
        raise AnswerError.of(
            "long_texts", "windows or error for a redaction", "cut, which leaves the end of a long text as it is"
        )


def _shown(value: Any) -> str:
    """Describe a JSON value for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return f"the string {short(value)}" if isinstance(value, str) else short(value)
