"""Label vectors of a bi-encoder: computed once, used for any number of texts, saved and checked against their model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from glimodern.files.atomic import atomic_file, user_path
from glimodern.runtime.ambient import as_in_a_new_process, lasting

from .labels import LabelSet

_FORMAT = "glimodern label vectors"


@dataclass(frozen=True, eq=False)
class LabelVectors:
    """Distinct labels and their vectors [labels, d], as returned by `GLiModern.encode_labels`.

    model: the checkpoint's name, for messages.
    fingerprint: hash of the label encoder's weights; a model refuses vectors with another fingerprint.
    descriptions: {label: description} for labels whose description was encoded in place of the label.
    """

    labels: tuple[str, ...]
    vectors: Tensor
    model: str
    fingerprint: str
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.is_inference():
            with lasting():
                object.__setattr__(self, "vectors", self.vectors.clone())

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each label in `vectors`."""
        return {label: row for row, label in enumerate(self.labels)}

    def of(self, labels: Sequence[str]) -> Tensor:
        """Return the vectors of some labels, [len(labels), d]."""
        return self.vectors[[self.rows[label] for label in labels]]

    def check_model(self, model: str, fingerprint: str, width: int) -> None:
        """Raise ValueError unless the vectors have this fingerprint and head width d. model: its name, for messages."""
        if self.vectors.shape != (len(self.labels), width):
            raise ValueError(
                f"label_vectors: expected vectors of shape {[len(self.labels), width]} (labels, the model's "
                f"hidden_size), got {list(self.vectors.shape)}; encode the labels with {model}"
            )
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"label_vectors: expected vectors from the label encoder of {model} ({fingerprint}), got vectors from "
                f"the one of {self.model} ({self.fingerprint}); encode the labels again with encode_labels"
            )

    def select(self, labels: LabelSet, where: str) -> LabelSet:
        """Return the label set with its names as prompts, after a check that each label has a vector here.

        where: the label set's name in errors. Raises ValueError for a label without a vector, and for a description
        other than the one that was encoded.
        """
        if missing := [name for name in labels.names if name not in self.rows]:
            raise ValueError(
                f"{where}: expected labels of label_vectors, got {len(missing)} without a vector, {missing[:4]}; "
                "encode them too with encode_labels"
            )
        for name, prompt in zip(labels.names, labels.prompts, strict=True):
            known = self.descriptions.get(name, name)
            if prompt not in (name, known):
                raise ValueError(
                    f"{where}[{name!r}]: expected the description encoded in label_vectors, {known!r}, got "
                    f"{prompt!r}; encode it with encode_labels, or give the label alone"
                )
        return LabelSet(labels.names, labels.names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically; its metadata holds labels, descriptions, model name and fingerprint."""
        from safetensors.torch import save

        metadata = {"format": _FORMAT, "model": self.model, "fingerprint": self.fingerprint}
        metadata["labels"] = json.dumps(self.labels, ensure_ascii=False)
        metadata["descriptions"] = json.dumps(dict(self.descriptions), ensure_ascii=False)
        content = save({"vectors": self.vectors.detach().cpu().contiguous()}, metadata=metadata)
        with atomic_file(path) as partial:
            partial.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelVectors:
        """Read a file written by `save`. Raises FileNotFoundError, and ValueError for another or an incomplete file."""
        from safetensors import SafetensorError, safe_open

        file = user_path(path)
        if not file.is_file():
            raise FileNotFoundError(f"label vectors {os.fspath(path)!r}: no such file")
        try:
            with as_in_a_new_process(), safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                vectors = opened.get_tensor("vectors").clone() if metadata.get("format") == _FORMAT else torch.empty(0)
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(path)}: not a whole safetensors file ({error}); save it again") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)}: expected a file of LabelVectors.save, got another safetensors file")
        labels, descriptions = json.loads(metadata["labels"]), json.loads(metadata.get("descriptions", "{}"))
        return cls(tuple(labels), vectors, metadata["model"], metadata["fingerprint"], descriptions)
