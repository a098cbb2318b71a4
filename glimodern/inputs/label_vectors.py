"""Vectors of labels that a bi-encoder made once, to be asked of any number of texts; saved and checked by model."""

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
    """Distinct labels and their vectors [labels, d], of `GLiModern.encode_labels`.

    descriptions: what the label encoder read for labels that have a description.
    model: the checkpoint's name, for messages. fingerprint: of the label encoder's weights; another model's vectors are
    refused by it.
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
        """The row of each label."""
        return {label: row for row, label in enumerate(self.labels)}

    def of(self, labels: Sequence[str]) -> Tensor:
        """The vectors of some of the labels, [labels, d]."""
        return self.vectors[[self.rows[label] for label in labels]]

    def check_model(self, model: str, fingerprint: str, width: int) -> None:
        """ValueError unless the vectors are of the model with this name, fingerprint and head's width d."""
        if self.vectors.shape != (len(self.labels), width):
            raise ValueError(
                f"label_vectors: expected vectors {[len(self.labels), width]} (labels, the model's hidden_size), got "
                f"{list(self.vectors.shape)}; encode the labels with {model}"
            )
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"label_vectors: expected vectors by the label encoder of {model} ({fingerprint}), got some by that of "
                f"{self.model} ({self.fingerprint}); encode the labels again, with encode_labels"
            )

    def select(self, asked: LabelSet, where: str) -> LabelSet:
        """The labels asked, by their names here. ValueError for labels that have no vector here, or one of another
        description. where: names the label set."""
        if missing := [name for name in asked.names if name not in self.rows]:
            raise ValueError(
                f"{where}: expected labels of label_vectors, {missing[:4]} ({len(missing)} in all) have no vector "
                "there; encode them too, with encode_labels"
            )
        for name, prompt in zip(asked.names, asked.prompts, strict=True):
            known = self.descriptions.get(name, name)
            if prompt not in (name, known):
                raise ValueError(
                    f"{where}[{name!r}]: expected the description that label_vectors were made of, {known!r}, got "
                    f"{prompt!r}; encode it with encode_labels, or give the label alone"
                )
        return LabelSet(asked.names, asked.names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all; its metadata holds the labels and what model they are of."""
        from safetensors.torch import save

        told = {"format": _FORMAT, "model": self.model, "fingerprint": self.fingerprint}
        told["labels"] = json.dumps(self.labels, ensure_ascii=False)
        told["descriptions"] = json.dumps(dict(self.descriptions), ensure_ascii=False)
        content = save({"vectors": self.vectors.detach().cpu().contiguous()}, metadata=told)
        with atomic_file(path) as partial:
            partial.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelVectors:
        """Read what `save` wrote. Raises FileNotFoundError, and ValueError for another kind of file or half of one."""
        from safetensors import SafetensorError, safe_open

        file = user_path(path)
        if not file.is_file():
            raise FileNotFoundError(f"label vectors {os.fspath(path)!r}: no such file")
        try:
            with as_in_a_new_process(), safe_open(file, framework="pt") as opened:
                told = opened.metadata() or {}
                vectors = opened.get_tensor("vectors").clone() if told.get("format") == _FORMAT else torch.empty(0)
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(path)}: not a whole safetensors file ({error}); save it again") from error
        if told.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)}: expected a file of LabelVectors.save, got another safetensors file")
        labels, descriptions = json.loads(told["labels"]), json.loads(told.get("descriptions", "{}"))
        return cls(tuple(labels), vectors, told["model"], told["fingerprint"], descriptions)
