"""Label sets as arguments: one for all texts, or one per text; see `request`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from glimodern.display import typed
from glimodern.inputs.labels import LabelSet

from .checks import check_string, is_collection, items, plain, size_of

_LABELS = "an iterable of strings, or a mapping label -> description"

CheckLabels = Callable[[LabelSet, str], LabelSet]
"""A model's check of a label set; it may return another one. The second argument is the label set's name in errors."""


def read_labels(labels: Any, where: str = "labels") -> LabelSet:
    """Read one label set. where: its name in errors.

    Raises TypeError for a value that is no label set, such as a single string, and ValueError for an empty label or
    for two labels with the same description.
    """
    labels = plain(labels)
    if isinstance(labels, str):
        raise TypeError(f"{where}: expected {_LABELS}, got the string {labels!r}; write [{labels!r}]")
    if isinstance(labels, Mapping):
        return _described(labels, where)
    if isinstance(labels, set | frozenset):
        labels = sorted(labels, key=str)
    return _label_set(items(labels, where, _LABELS), where)


def check_labels(labels: Any) -> list[str]:
    """Read one label set with `read_labels` and return its names."""
    return list(read_labels(labels).names)


def _label_set(labels: Iterable[Any], where: str) -> LabelSet:
    names = tuple(dict.fromkeys(check_label(label, f"{where}[{i}]") for i, label in enumerate(labels)))
    return LabelSet(names, names)


def _described(labels: Mapping[Any, Any], where: str) -> LabelSet:
    names = tuple(check_label(name, f"{where}: key {i}") for i, name in enumerate(labels))
    prompts = tuple(check_label(text, f"{where}[{name!r}]") for name, text in zip(names, labels.values(), strict=True))
    if len(set(prompts)) < len(names):
        duplicate = next(text for text in prompts if prompts.count(text) > 1)
        shared = [name for name, text in zip(names, prompts, strict=True) if text == duplicate]
        raise ValueError(
            f"{where}: expected a different description for each label, got {duplicate!r} for {shared}; change one"
        )
    return LabelSet(names, prompts)


def check_label(value: Any, where: str) -> str:
    label = check_string(value, where)
    if not label.strip():
        raise ValueError(f"{where}: expected a name such as 'person', got an empty string")
    return label


def read_label_sets(labels: Any, texts: int | None, check: CheckLabels) -> LabelSet | Iterable[LabelSet]:
    """Return the label set of all texts, or the label sets of each text.

    Label sets per text are checked immediately if their iterable has a length, and lazily otherwise.
    """
    if labels is None:
        raise TypeError(f"labels: expected {_LABELS}, got None")
    if isinstance(labels, str | Mapping):
        return check(read_labels(labels), "labels")
    if isinstance(labels, set | frozenset):
        if any(map(is_collection, labels)):
            raise TypeError(
                f"labels: expected label sets in the texts' order, got {typed(labels)}, which has no order; give a list"
            )
        return check(read_labels(labels), "labels")
    rest = items(labels, "labels", f"{_LABELS}, or one of these per text", dimensions=2)
    head = [plain(label) for label in itertools.islice(rest, 1)]
    if not head or not is_collection(head[0]):
        return check(_label_set(itertools.chain(head, rest), "labels"), "labels")
    count = size_of(labels)
    if count is not None and texts is not None and count != texts:
        raise ValueError(f"labels: expected one label set per text ({texts}), got {count}")
    sets = _each_label_set(itertools.chain(head, rest), check)
    return sets if count is None else list(sets)


def _each_label_set(labels: Iterator[Any], check: CheckLabels) -> Iterator[LabelSet]:
    last, label_set = object(), LabelSet((), ())
    for i, values in enumerate(labels):
        if values is not last or not isinstance(values, list | tuple):  # many texts usually share one list
            where = f"labels[{i}]"
            last, label_set = values, check(read_labels(values, where), where)
        yield label_set
