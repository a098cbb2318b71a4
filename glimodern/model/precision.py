"""How far a model in bf16 or int8 is from the same checkpoint in fp32: entities and probabilities, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from glimodern.data.metrics import score

if TYPE_CHECKING:
    from glimodern.inference.request import Requests
    from glimodern.inference.stream import Result
    from glimodern.inputs.batch import PackedBatch
    from glimodern.inputs.labels import Labels
    from glimodern.inputs.packer import Packer
    from glimodern.network.span_network import SpanNetwork

_COUNTED_FROM = 0.1  # drift is of the spans and types to which one side gives at least this probability


@dataclass(frozen=True)
class PrecisionReport:
    """agreement: F1 of the model's entities with fp32's as the gold. drift: |difference of probabilities|, over every
    span and type that either side gives at least 0.1; 0 where there is none."""

    dtype: str
    texts: int
    entities: int  # that fp32 finds
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
    """What of a `GLiModern` is compared."""

    packer: Packer

    @property
    def device(self) -> torch.device: ...

    def requests(self, texts: Any, labels: Labels) -> Requests: ...

    def predict_words(self, texts: Any, labels: Labels, *, threshold: float = ...) -> list[Result]: ...

    def run_in_eval(self, compute: Callable[[Any], T]) -> T: ...


@dataclass(frozen=True)
class Answers:
    """What one model says about some texts."""

    entities: list[list[tuple[int, int, str]]]
    probabilities: list[torch.Tensor]  # of a text: [words, max_width, types], fp32


@torch.no_grad()
def answers(model: Predictor, texts: Sequence[str], labels: Labels, threshold: float) -> Answers:
    """The model's entities and probabilities of texts; labels: as of predict."""
    requests = list(model.requests(texts, labels).stream)
    words = [request.words for request in requests]
    asked = [dict(zip(*request.labels, strict=True)) for request in requests]
    found = model.predict_words(words, asked, threshold=threshold)
    entities = [[(start, end, label) for start, end, label, _ in text.entities] for text in found]
    probabilities = []
    for request in requests:  # one at a time: a score is K * types numbers a word
        batch = model.packer.pack([request.words], [request.labels.prompts]).to(model.device)
        (logits,) = model.run_in_eval(partial(_scores, batch=batch))
        probabilities.append(torch.sigmoid(logits.float()).cpu())
    return Answers(entities, probabilities)


def _scores(network: SpanNetwork, batch: PackedBatch) -> list[torch.Tensor]:
    return network.scores(batch)


def compare_answers(dtype: str, ours: Answers, exact: Answers) -> PrecisionReport:
    """The report of a model's answers against fp32's, to the same questions."""
    drift = torch.cat(
        [
            (mine - truth).abs()[torch.maximum(mine, truth) >= _COUNTED_FROM]
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


# Asked of every model that is loaded in int8: sentences of several kinds, and labels that any model knows.
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
