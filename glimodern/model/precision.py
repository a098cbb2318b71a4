"""Comparing a model in bf16 or int8 with the same checkpoint in fp32: entities and probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from glimodern.data.metrics import score

if TYPE_CHECKING:
    from glimodern.inference.compute import Result
    from glimodern.inference.request import Requests
    from glimodern.inputs.batch import PackedBatch
    from glimodern.inputs.labels import Labels
    from glimodern.inputs.packer import Packer
    from glimodern.network.span_network import SpanNetwork

_MIN_PROBABILITY = 0.1  # drift counts spans and types to which at least one side gives this probability


@dataclass(frozen=True)
class PrecisionReport:
    """Difference of a model from the same checkpoint in fp32.

    texts: number of texts compared. entities: number of entities that fp32 finds. agreement: F1 of the model's entities
    with fp32's as the gold. mean_drift, max_drift: |difference of the probabilities|, over all spans and types to which
    either side gives at least 0.1; 0 if there are none.
    """

    dtype: str
    texts: int
    entities: int
    agreement: float
    mean_drift: float
    max_drift: float

    def __str__(self) -> str:
        return (
            f"{self.dtype} against fp32, {self.texts} texts: {100 * self.agreement:.1f} % agreement on {self.entities} "
            f"entities, probabilities off by {self.mean_drift:.4f} on average and {self.max_drift:.3f} at most"
        )


T = TypeVar("T")


class Predictor(Protocol):
    """The part of `GLiModern` that the comparison uses."""

    packer: Packer

    @property
    def device(self) -> torch.device: ...

    def requests(self, texts: Any, labels: Labels) -> Requests: ...

    def predict_words(self, texts: Any, labels: Labels, *, threshold: float = ...) -> list[Result]: ...

    def run_in_eval(self, compute: Callable[[Any], T]) -> T: ...


@dataclass(frozen=True)
class Answers:
    """One model's predictions for some texts.

    entities: (first word, last word, label) of each text. probabilities: of each text, fp32, the sigmoids of
    `SpanNetwork.scores`.
    """

    entities: list[list[tuple[int, int, str]]]
    probabilities: list[torch.Tensor]


@dataclass(frozen=True)
class Questions:
    """Texts and the labels of each, {label: prompt}, by which two models are compared, and the entities' threshold."""

    texts: list[str]
    label_sets: list[dict[str, str]]
    threshold: float = 0.5

    @classmethod
    def read(
        cls, model: Predictor, texts: str | Iterable[str] | None, labels: Labels | None, threshold: float = 0.5
    ) -> Questions:
        """Read texts and labels as `GLiModern.predict` does. texts None: a dozen built-in sentences, with seven labels.

        Raises ValueError if there is no text, and for texts without labels or the other way round.
        """
        if (texts is None) != (labels is None):
            got = "texts only" if labels is None else "labels only"
            raise ValueError(f"texts, labels: expected both, or neither for the built-in sentences, got {got}")
        if texts is None or labels is None:
            texts, labels = CANARY_TEXTS, CANARY_LABELS
        requests = list(model.requests(texts, labels).stream)
        if not requests:
            raise ValueError("texts: expected at least one text to compare by, got none")
        label_sets = [dict(zip(*request.labels, strict=True)) for request in requests]
        return cls([request.text for request in requests], label_sets, threshold)


@torch.no_grad()
def answers(model: Predictor, asked: Questions) -> Answers:
    """Compute the model's entities and probabilities."""
    requests = list(model.requests(asked.texts, asked.label_sets).stream)
    words = [request.words for request in requests]
    results = model.predict_words(words, asked.label_sets, threshold=asked.threshold)
    entities = [[(start, end, label) for start, end, label, _ in result.entities] for result in results]
    probabilities = []
    for request in requests:  # one at a time, because a span model has max_width * types scores a word
        batch = model.packer.pack([request.words], [request.labels.prompts]).to(model.device)
        (logits,) = model.run_in_eval(partial(_scores, batch=batch))
        probabilities.append(torch.sigmoid(logits.float()).cpu())
    return Answers(entities, probabilities)


def _scores(network: SpanNetwork, batch: PackedBatch) -> list[torch.Tensor]:
    return network.scores(batch)


def compare_answers(dtype: str, ours: Answers, exact: Answers) -> PrecisionReport:
    """Compare a model's answers with fp32's to the same requests. dtype: of `ours`."""
    drift = torch.cat(
        [
            (mine - truth).abs()[torch.maximum(mine, truth) >= _MIN_PROBABILITY]
            for mine, truth in zip(ours.probabilities, exact.probabilities, strict=True)
        ]
    )
    counts = score(exact.entities, ours.entities).micro
    nothing = counts.gold == counts.predicted == 0
    return PrecisionReport(
        dtype=dtype,
        texts=len(exact.entities),
        entities=counts.gold,
        agreement=1.0 if nothing else counts.f1,
        mean_drift=float(drift.mean()) if len(drift) else 0.0,
        max_drift=float(drift.max()) if len(drift) else 0.0,
    )


# Predicted by every model that is quantised to int8: sentences about various subjects, and labels that any model knows.
CANARY_LABELS = ("person", "organization", "location", "date", "product", "event", "disease")
CANARY_TEXTS = (
    "Maria Keller joined Siemens in Munich in March 2019 and left for Bosch two years later.",
    "The minister, Ahmed Farouk, met delegates of the World Bank in Cairo on Tuesday.",
    "Doctors at Lagos University Hospital treated eleven patients with malaria and two with typhoid fever.",
    "Toyota recalled 40,000 Corolla cars sold in Brazil and Argentina between 2014 and 2017.",
    "The 1998 World Cup final was played in Saint-Denis, where France beat Brazil.",
    "Researchers of ETH Zurich and Stanford presented a faster battery at the Tokyo conference.",
    "She flew from Oslo to Reykjavik with Icelandair, reading a novel by Halldor Laxness.",
    "Nokia sold its phone business to Microsoft in 2014 for several billion euros.",
    "Aspirin lowers the risk of a second stroke, said Dr. Helen Park of the Mayo Clinic.",
    "On 4 July the Smithsonian opened an exhibition on Amelia Earhart in Washington.",
    "No one answered the door, so we went home and read the paper.",
    "Hurricane Maria struck Puerto Rico in September 2017 and cut the power for months.",
)
LEAST_AGREEMENT = 0.97
