"""Thresholds as arguments: one for all texts, or one per text; see `request`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glimodern.display import short
from glimodern.inputs.labels import LabelSet

from .checks import check_threshold, items, plain, size_of
from .label_sets import check_label

CALIBRATED = "calibrated"
OTHERS = "*"  # in a mapping of thresholds: the labels that it does not name
_THRESHOLD = 'a probability, a mapping label -> probability, one of these per text, or "calibrated"'

Threshold = float | tuple[float, ...]
"""A probability for all labels of a text, or one for each of its labels."""

ReadThreshold = float | dict[str, float] | Callable[[str], float]
"""A probability, one for each label that is named ("*": for the others), or a function of the label."""


def read_threshold(threshold: Any, where: str = "threshold") -> float | dict[str, float]:
    """Read the threshold of one text. where: its name in errors. Raises TypeError or ValueError."""
    if not isinstance(threshold, Mapping):
        return check_threshold(threshold, where)
    return {
        check_label(label, f"{where}: key {i}"): check_threshold(value, f"{where}[{label!r}]")
        for i, (label, value) in enumerate(threshold.items())
    }


def read_thresholds(
    threshold: Any, texts: int | None, calibrated: Callable[[str], float] | None
) -> ReadThreshold | Iterable[ReadThreshold]:
    """Return the threshold of all texts, or the thresholds of each text. calibrated: the model's, if it has them."""
    if isinstance(threshold, str):
        if threshold != CALIBRATED:
            raise TypeError(f"threshold: expected {_THRESHOLD}, got the string {threshold!r}")
        if calibrated is None:
            raise ValueError(
                'threshold: expected a calibrated model for "calibrated", got one without a calibration; calibrate it '
                "with python -m glimodern.calibrate or model.calibrate"
            )
        return calibrated
    if isinstance(threshold, Mapping) or getattr(threshold, "ndim", None) == 0 or not hasattr(threshold, "__iter__"):
        return read_threshold(threshold)
    rest = items(threshold, "threshold", _THRESHOLD)
    count = size_of(threshold)
    if count is not None and texts is not None and count != texts:
        raise ValueError(f"threshold: expected one threshold per text ({texts}), got {count}")
    each = (read_threshold(plain(value), f"threshold[{i}]") for i, value in enumerate(rest))
    return each if count is None else list(each)


def _by_label(threshold: ReadThreshold, labels: LabelSet, asked: set[str] | None, where: str) -> Threshold:
    """Return the threshold of a text with these labels.

    asked: all labels a mapping may name; None: any. where: the threshold's name in errors.

    Raises ValueError for a mapping that names a label that is not asked, or that lacks a label.
    """
    if isinstance(threshold, float):
        return threshold
    if not isinstance(threshold, dict):
        return tuple(map(threshold, labels.names))
    unknown = [] if asked is None else [name for name in threshold if name not in asked and name != OTHERS]
    if unknown:
        raise ValueError(f"{where}: expected labels that are asked, or {OTHERS!r} for the others, got {short(unknown)}")
    missing = [] if OTHERS in threshold else [name for name in labels.names if name not in threshold]
    if missing:
        raise ValueError(
            f"{where}: expected a probability for each label, got none for {short(missing)}; add {OTHERS!r} for the "
            "others"
        )
    return tuple(threshold.get(name, threshold.get(OTHERS, 0.0)) for name in labels.names)


def thresholds_of(
    thresholds: ReadThreshold | Iterable[ReadThreshold], labels: LabelSet | Iterable[LabelSet]
) -> Callable[[ReadThreshold, LabelSet, str], Threshold]:
    """Return a function of a text's threshold, its labels and the threshold's name; it remembers its last result."""
    asked: set[str] | None = None
    if isinstance(labels, LabelSet):
        asked = set(labels.names)
    elif isinstance(labels, list) and isinstance(thresholds, dict):
        asked = {name for label_set in labels for name in label_set.names}
    last: tuple[ReadThreshold, LabelSet, Threshold] | None = None

    def of(threshold: ReadThreshold, label_set: LabelSet, where: str) -> Threshold:
        nonlocal last
        if last is None or last[0] is not threshold or last[1] is not label_set:
            last = threshold, label_set, _by_label(threshold, label_set, asked, where)
        return last[2]

    return of
