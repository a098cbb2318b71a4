"""Label sets: the entity types to find in a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

LabelArgument = Iterable[str] | Mapping[str, str]
"""One label set as a public argument: labels, or {label: description}."""
Labels = LabelArgument | Iterable[LabelArgument]
"""One label set for all texts, or one per text."""
TextThreshold = float | Mapping[str, float]
"""A probability for all labels, or {label: probability}, in which "*" stands for all other labels."""
TextSpans = Iterable[tuple[int, int] | Mapping[str, Any]]
"""Spans of a text: (start, end) in characters, end exclusive, or mappings with these keys."""
Spans = TextSpans | Iterable[TextSpans]
"""Spans of the only text, or of each text."""
Thresholds = TextThreshold | Iterable[TextThreshold] | Literal["calibrated"]
"""One threshold for all texts, or one per text, or those of the model's calibration."""


class LabelSet(NamedTuple):
    """Distinct labels. names: the labels in results. prompts: the texts that the model reads (labels or descriptions).

    Both have the same length and order.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
