"""What adapters to other libraries share: checks of what is asked, and a model that is loaded on first use.

Nothing is imported before it is needed: other libraries import adapters whenever a pipeline is built.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from glimodern.inference.entities import Entities
    from glimodern.model.glimodern import GLiModern

AskedLabels = Sequence[str] | Mapping[str, str]
"""Labels, or a mapping label -> description."""
AskedThreshold = float | Mapping[str, float] | Literal["calibrated"]
"""A probability, a mapping label -> probability with "*" for the others, or the model's calibrated thresholds."""


def check_labels_and_threshold(labels: Any, threshold: Any) -> None:
    """Raise ValueError or TypeError for labels or a threshold that `predict` would refuse, or for no label."""
    from glimodern.inference.label_sets import check_labels
    from glimodern.inference.request import ReadOptions, read_word_requests
    from glimodern.inference.thresholds import CALIBRATED, read_threshold

    if not check_labels(labels):
        raise ValueError("labels: expected at least one, such as ['person'], got none")
    if threshold != CALIBRATED:
        read_word_requests([], labels, ReadOptions(threshold=read_threshold(threshold)))


def check_reading(settings: Any) -> dict[str, Any]:
    """Return the options of long texts and many labels that were given, as `predict` takes them.

    settings: a mapping with any of long_texts, window, context and labels_per_prompt; None values were not given.
    Raises ValueError and TypeError.
    """
    from dataclasses import fields

    from glimodern.cli.reading import ReadingSettings
    from glimodern.display import typed

    if not isinstance(settings, Mapping):
        raise TypeError(f"reading: expected a mapping of options of predict, got {typed(settings)}")
    known = [field.name for field in fields(ReadingSettings)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"reading: expected options among {', '.join(known)}, got {unknown}; leave the others out")
    return ReadingSettings(**settings).given()


class LazyModel:
    """A checkpoint and how it is asked; the checkpoint is loaded on first use.

    model, dtype, device, revision: see `GLiModern.from_pretrained`. flat, multi_label: see `predict`. reading: see
    `check_reading`. Raises ValueError and TypeError for options that `predict` would refuse.
    """

    def __init__(
        self,
        model: str,
        *,
        flat: bool,
        multi_label: bool,
        dtype: str,
        device: str,
        revision: str | None,
        reading: Mapping[str, Any] | None,
    ) -> None:
        from glimodern.files.atomic import expand_user
        from glimodern.inference.request import Search

        expand_user(model, "model")
        Search.checked(flat, multi_label)
        self.name = str(model)
        self.flat, self.multi_label = flat, multi_label
        self.dtype, self.device, self.revision = dtype, device, revision
        self.reading = check_reading({} if reading is None else reading)
        self._model: GLiModern | None = None
        self._loading = threading.Lock()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def load(self) -> GLiModern:
        """Return the model. Threads that ask at the same time load it once."""
        with self._loading:
            if self._model is None:
                from glimodern.model.glimodern import GLiModern

                self._model = GLiModern.from_pretrained(
                    self.name, dtype=self.dtype, device=self.device, revision=self.revision
                )
            return self._model

    def find(self, texts: Iterable[str], labels: AskedLabels, threshold: AskedThreshold) -> list[Entities]:
        """Find the entities of all texts in one call of `predict`."""
        return self.load().predict(
            list(texts), labels, threshold, self.flat, self.multi_label, progress=False, **self.reading
        )

    def options(self) -> dict[str, Any]:
        """Return the options, as keyword arguments that give the same model again; JSON can hold them."""
        return {
            "flat": self.flat,
            "multi_label": self.multi_label,
            "dtype": self.dtype,
            "device": self.device,
            "revision": self.revision,
            "reading": dict(self.reading) or None,
        }
