"""Label sets: the entity types asked of a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

LabelArgument = Iterable[str] | Mapping[str, str]
"""One label set as a user gives it: labels, or label -> description."""
Labels = LabelArgument | Iterable[LabelArgument]
"""One label set for all texts, or one per text."""


class LabelSet(NamedTuple):
    """Distinct labels: the names that results have, and the prompts that the model reads (labels or descriptions)."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
