"""EntityPredictor: the span network that reads texts and labels, and finds entities in them."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from glimodern.inference.budget import activation_bytes, resolve_batch_tokens
from glimodern.inference.compute import SpanModel
from glimodern.inference.decode import Candidates
from glimodern.inference.label_sets import read_labels
from glimodern.inference.passages import FloatArray
from glimodern.inputs.batch import PackedBatch
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.inputs.labels import LabelArgument
from glimodern.inputs.transfer import to_host
from glimodern.network.label_encoder import LabelEncoder
from glimodern.network.span_network import SpanNetwork
from glimodern.runtime.ambient import predicts

from .prediction import TextPredictor


class EntityPredictor(TextPredictor, SpanNetwork):
    """Prediction by a span network: texts and labels in, entities out.

    source: the checkpoint's name and the folder it was read from; None for a model that was not loaded from one.
    """

    source: tuple[str, Path] | None = None

    @property
    def source_name(self) -> str:
        """The model's name in messages: the checkpoint that it was loaded from, else its encoder."""
        return self.source[0] if self.source is not None else self.config.model_name or "a model of this session"

    @predicts
    @torch.no_grad()
    def encode_labels(self, labels: LabelArgument) -> LabelVectors:
        """Compute the vectors of any number of labels, for predict(texts, label_vectors=...).

        labels: one label set, as in `predict`. The descriptions of a mapping are encoded. Duplicates count once.

        Raises ValueError for a model that is not a bi-encoder.
        """
        encoder = self._require_label_encoder("encode_labels")
        names, prompts = read_labels(labels)
        vectors = self.run_in_eval(lambda network: self._require_label_encoder("encode_labels", network)(prompts))
        described = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name != prompt}
        return LabelVectors(names, vectors, self.source_name, encoder.fingerprint, described)

    def _require_label_encoder(self, argument: str, network: SpanNetwork | None = None) -> LabelEncoder:
        label_encoder = (network or self).label_encoder
        if label_encoder is None:
            raise ValueError(
                f"{argument}: expected a bi-encoder, got a model that reads the labels together with each text and has "
                "no vector for a label alone; pass labels to predict, or load a model with a labels_encoder"
            )
        return label_encoder

    def _check_vectors(self, label_vectors: LabelVectors) -> None:
        if not isinstance(label_vectors, LabelVectors):
            raise TypeError(
                f"label_vectors: expected LabelVectors of encode_labels, got {type(label_vectors).__name__}"
            )
        encoder = self._require_label_encoder("label_vectors")
        label_vectors.check_model(self.source_name, encoder.fingerprint, self.config.hidden_size)

    def _span_model(self, label_vectors: LabelVectors | None) -> SpanModel:
        def candidates(batch: PackedBatch, threshold: float | FloatArray) -> Candidates:
            limit: float | Tensor = threshold if isinstance(threshold, float) else torch.from_numpy(threshold)
            return Candidates(*to_host(self._candidates(batch, limit, label_vectors=label_vectors)))

        given = partial(self._score_spans, label_vectors=label_vectors)
        return SpanModel(candidates, given, self.head.ties)

    def _batch_tokens(self, batch_tokens: int | str) -> int:
        weight = next(self.parameters())
        return resolve_batch_tokens(batch_tokens, weight.device, activation_bytes(weight, self.config.hidden_size))
