"""Calibration of a model's scores on annotated text: what is stored of it, and its file's form.

A score is the probability that the model itself gives. A calibrated probability is

    sigmoid(logit(score) / temperature + bias)

Thresholds are scores, before temperature and bias, so that a search compares them with the model's own scores. The map
to calibrated probabilities increases, so both give the same order of candidates. `data.calibration_fit` fits all this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from glimodern.display import short
from glimodern.settings import NOT_NEGATIVE, POSITIVE, PROBABILITY, SettingError, check_settings

from .fields import read_document

Floats = npt.NDArray[np.float64]

FORMAT = "glimodern calibration 1"
_LEAST = 1e-6  # scores are clipped to [_LEAST, 1 - _LEAST], because fp32 rounds large scores to 1


@dataclass(frozen=True)
class Measured:
    """What was measured when a model was calibrated.

    F1 is micro F1 of flat entities. It and ece_after are of sentences that the fit had not seen (cross-validation).
    """

    sentences: Annotated[int, NOT_NEGATIVE]
    gold: Annotated[int, NOT_NEGATIVE]
    """Gold entities."""
    candidates: Annotated[int, NOT_NEGATIVE]
    """Candidates (sentence, span, label) with a score above the floor, overlapping ones included."""
    correct: Annotated[int, NOT_NEGATIVE]
    """Candidates that are gold."""
    ece_before: Annotated[float, PROBABILITY]
    """Expected calibration error of the scores."""
    ece_after: Annotated[float, PROBABILITY]
    """Expected calibration error of the calibrated probabilities."""
    f1_before: Annotated[float, PROBABILITY]
    """F1 at the threshold 0.5."""
    f1_common: Annotated[float, PROBABILITY]
    """F1 at the common threshold."""
    f1_labels: Annotated[float, PROBABILITY]
    """F1 with a threshold for each label."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Calibration:
    """Temperature and bias of calibrated probabilities, and thresholds of scores.

    thresholds: of labels with gold entities in the calibration data. They are shrunk towards the common threshold, the
    more the fewer gold entities the label has.
    fingerprint: of the model's weights (`checkpoint.weights_fingerprint`).
    """

    temperature: Annotated[float, POSITIVE]
    bias: float
    threshold: Annotated[float, PROBABILITY]
    """Threshold of labels that are not in `thresholds`."""
    thresholds: Mapping[str, float]
    fingerprint: str
    measured: Measured

    def __post_init__(self) -> None:
        check_settings(self)
        for label, threshold in self.thresholds.items():
            if not isinstance(label, str) or not label:
                raise SettingError(f"thresholds: expected labels as text, got {short(label)}")
            if not isinstance(threshold, int | float) or isinstance(threshold, bool) or threshold not in PROBABILITY:
                raise SettingError(f"thresholds[{label!r}]: expected a number {PROBABILITY}, got {threshold!r}")

    def probability(self, scores: npt.ArrayLike) -> Floats:
        """Return the calibrated probabilities of scores, an array of the same shape. A NaN stays a NaN."""
        return scaled(scores, self.temperature, self.bias)

    def threshold_of(self, label: str) -> float:
        """Return the least score of an entity with this label, exclusive."""
        return self.thresholds.get(label, self.threshold)

    def to_json(self) -> str:
        """Return the text of `calibration.json`. Equal calibrations give equal texts; numbers keep all their bits."""
        changed = {"thresholds": dict(sorted(self.thresholds.items())), "measured": asdict(self.measured)}
        content = {"format": FORMAT, **vars(self), **changed}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Calibration:
        """Read a text of `to_json`. name: the file's name in messages.

        Raises ValueError, with the file and the field, for broken JSON, a missing or unknown field, and a wrong value.
        """
        return read_document(cls, text, name, FORMAT, "calibrate the model again, or delete the file")

    def __str__(self) -> str:
        measured = self.measured
        return (
            f"calibrated on {measured.sentences} sentences: temperature {self.temperature:.2f}, bias {self.bias:.2f}, "
            f"threshold {self.threshold:.2f}; F1 {100 * measured.f1_before:.1f} at 0.5, "
            f"{100 * measured.f1_common:.1f} at the common threshold, {100 * measured.f1_labels:.1f} by label"
        )


def logits(scores: npt.ArrayLike) -> Floats:
    """Return log(score / (1 - score)), finite for scores 0 and 1 too."""
    clipped = np.clip(np.asarray(scores, dtype=np.float64), _LEAST, 1 - _LEAST)
    result: Floats = np.log(clipped) - np.log1p(-clipped)
    return result


def sigmoid(values: npt.ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-value)) without overflow."""
    array = np.asarray(values, dtype=np.float64)
    small = np.exp(-np.abs(array))
    result: Floats = np.where(array >= 0, 1.0, small) / (1.0 + small)
    return result


def scaled(scores: npt.ArrayLike, temperature: float, bias: float) -> Floats:
    """Return sigmoid(logit(score) / temperature + bias)."""
    return sigmoid(logits(scores) / temperature + bias)


def logit(score: float) -> float:
    """Return log(score / (1 - score)) of a number."""
    clipped = min(max(score, _LEAST), 1 - _LEAST)
    return math.log(clipped) - math.log1p(-clipped)
