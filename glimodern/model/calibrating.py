"""Calibration of a model on a data set: candidates collected, fitted, and checked against the model's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from glimodern.data.calibration import Calibration
from glimodern.data.calibration_fit import Candidates, Fit, fit
from glimodern.data.example import Dataset
from glimodern.data.sampling import asked_types
from glimodern.inference.checks import check_count
from glimodern.inference.decode import greedy_decode

if TYPE_CHECKING:
    from glimodern.inference.compute import Result
    from glimodern.inputs.packer import Packer

logger = logging.getLogger(__name__)

FLOOR = 0.01
"""Score of a candidate that is too low to count. No threshold lies below it; probabilities are fitted above it."""


class Predictor(Protocol):
    """The part of `GLiModern` that calibration uses."""

    packer: Packer

    @property
    def weights_fingerprint(self) -> str: ...

    def predict_words(
        self, texts: Iterable[list[str]], labels: Any, *, threshold: float, flat: bool, multi_label: bool,
        batch_tokens: int | str,
    ) -> Iterable[Result]: ...  # fmt: skip


class Calibrated(Protocol):
    """The part of `GLiModern` that saving a calibration uses."""

    calibration: Calibration | None
    inference_only: bool
    _loaded_fingerprint: str

    @property
    def source_name(self) -> str: ...


def calibrate(model: Predictor, dataset: Dataset, *, seed: int = 0, batch_tokens: int | str = "auto") -> Fit:
    """Fit and measure a calibration of the model on a data set. See `GLiModern.calibrate`."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset: expected a Dataset of glimodern.data, got {type(dataset).__name__}; use load_dataset"
        )
    seed = check_count("seed", seed, "a whole number", least=0)
    name = f"dataset {dataset.name}"
    candidates = collect(model, dataset, batch_tokens=batch_tokens)
    return fit(
        candidates, partial(greedy_decode, flat=True), fingerprint=model.weights_fingerprint, seed=seed, name=name
    )


def collect(model: Predictor, dataset: Dataset, *, batch_tokens: int | str = "auto") -> Candidates:
    """Find the candidates above `FLOOR` of each sentence, asked the labels of `asked_types`.

    Spans of several labels and nested spans are all candidates. A span that crosses one with a higher score is not,
    because `predict_words` drops it. Raises ValueError for a sentence whose labels do not fit the encoder.
    """
    label_sets = asked_types(dataset)
    for number, (example, labels) in enumerate(zip(dataset, label_sets, strict=True)):
        if problem := model.packer.label_problem(tuple(labels)):
            raise ValueError(f"dataset {dataset.name}, sentence {example.id or number}: {problem}")
    results = model.predict_words(
        [example.words for example in dataset], label_sets, threshold=FLOOR, flat=False, multi_label=True,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    return Candidates.of(
        [len(example.words) for example in dataset],
        [example.entities for example in dataset],
        [result.entities for result in results],
    )


def kept_calibration(model: Calibrated, fingerprint: str) -> Calibration | None:
    """Return the calibration to save beside weights with this fingerprint; None, with a warning, if they have changed.

    Weights of a model for inference change by rounding only, so that its calibration is saved with their fingerprint.
    """
    calibration = model.calibration
    if calibration is None or calibration.fingerprint == fingerprint:
        return calibration
    if model.inference_only and calibration.fingerprint == model._loaded_fingerprint:
        return replace(calibration, fingerprint=fingerprint)
    logger.warning(
        "%s: the calibration is not saved, because it was made on other weights; calibrate again", model.source_name
    )
    return None
