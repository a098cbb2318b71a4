"""Options of prediction that command lines and integrations share: thresholds, and how long texts are read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from glimodern.display import short
from glimodern.settings import AT_LEAST_ONE, NOT_NEGATIVE, PROBABILITY, SettingError, check_settings

from . import Repeated, check_unicode, split_values

Threshold = float | dict[str, float] | Literal["calibrated"]
"""A probability for all types, {type: probability}, or the thresholds of the model's calibration."""

DEFAULT_THRESHOLD = 0.5
_EXPECTED = '--threshold: expected a probability, TYPE=PROBABILITY pairs separated by commas, or "calibrated"'


@dataclass(frozen=True)
class ReadingSettings:
    """How texts and label sets are read that do not fit the encoder. A setting that is None was not given."""

    long_texts: Literal["windows", "cut", "error"] | None = None
    """A text longer than the model takes is read in overlapping windows, is cut at its end with a warning, or is an
    error. Default: windows."""
    window: Annotated[int, AT_LEAST_ONE] | Literal["sentence"] | None = None
    """Maximum words of a window; sentence: each sentence of every text is read alone. Default: as many as the model
    takes."""
    context: Annotated[int | None, NOT_NEGATIVE] = None
    """Minimum words that a window shows on each side of an entity. Default: 32, or fewer in small windows."""
    labels_per_prompt: Annotated[int | None, AT_LEAST_ONE] = None
    """Maximum types asked at a time; more are asked in groups. Default: all, if a prompt in the model's training may
    have had as many (its max_types), else 10. Never more than half of the encoder's tokens hold."""

    def __post_init__(self) -> None:
        """Check each setting, and refuse one that would have no effect beside long_texts."""
        check_settings(self)
        idle = []
        if self.long_texts == "cut":
            idle = [name for name in ("window", "context") if getattr(self, name) is not None]
        elif self.long_texts == "error":
            idle = ["context"] if self.context else []
        if idle:
            given = ", ".join(f"{name} {getattr(self, name)}" for name in idle)
            raise SettingError(
                f"{', '.join(idle)}: expected long_texts windows, got {self.long_texts}, which reads no overlapping "
                f"windows, and {given}; leave one of them out"
            )

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, as keyword arguments of `GLiModern.predict`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ThresholdOption:
    """The thresholds of a prediction on a command line."""

    threshold: Annotated[Repeated, tyro.conf.arg(metavar="P|TYPE=P,...|calibrated")] = ()
    """Minimum probability of an entity, exclusive: one for all types; or one for each, as in "person=0.6,city=0.4",
    where "*" stands for the types that are not named: "person=0.6,*=0.4"; or calibrated: the thresholds of the model's
    calibration. A type with a comma needs double quotes around its pair. May be given several times. Default: 0.5."""

    def read(self) -> Threshold:
        """Return the thresholds. A type may contain "=": the last one separates it from its probability.

        Raises ValueError.
        """
        entries = [entry.strip() for value in self.threshold for entry in split_values(value, _EXPECTED)]
        entries = [entry for entry in entries if entry]
        if not self.threshold:
            return DEFAULT_THRESHOLD
        if entries == ["calibrated"]:
            return "calibrated"
        if len(entries) == 1 and "=" not in entries[0]:
            return _probability(entries[0], "")
        thresholds: dict[str, float] = {}
        for entry in entries:
            label, _, number = (part.strip() for part in entry.rpartition("="))
            check_unicode(label, "--threshold")
            if not label:
                raise ValueError(f"{_EXPECTED}, got {short(entry)}")
            if label in thresholds:
                raise ValueError(f"--threshold: expected each type once, got {short(label)} twice; leave one out")
            thresholds[label] = _probability(number, f" for {short(label)}")
        if not thresholds:
            raise ValueError(f"{_EXPECTED}, got none")
        return thresholds


def _probability(text: str, of: str) -> float:
    """Read a probability. of: its type, in messages."""
    try:
        number = float(text)
    except ValueError:
        expected = f"--threshold: expected a probability in [0, 1]{of}" if of else _EXPECTED
        raise ValueError(f"{expected}, got {short(text)}") from None
    if number not in PROBABILITY:
        raise ValueError(f"--threshold: expected a probability in [0, 1]{of}, got {short(text)}")
    return number
