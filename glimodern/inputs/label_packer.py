"""Batches for a bi-encoder: texts without a prompt, and their labels as strings."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from .packer import Batch, Packer
from .tokens import IntArray, LabelArrays, PackedArrays, PromptTokens, TextTokens
from .words import Entity

_NONE = np.empty(0, dtype=np.int64)


class TextPacker(Packer[Batch]):
    """Packer of words alone, `[CLS] words... [SEP]`; labels are passed on as strings."""

    asks_in_text = False

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """Return an empty prompt."""
        return PromptTokens(_NONE, _NONE, _NONE)

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Return zeros, int64 [labels]."""
        return np.zeros(len(labels), dtype=np.int64)

    def pack_arrays(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
        prompts: Sequence[PromptTokens] | None = None,
    ) -> LabelArrays:
        """Pack tokenised texts; types[i] are the labels of texts[i], and `LabelArrays.labels` the distinct ones."""
        packed: PackedArrays = super().pack_arrays(texts, types, entities, prompts)
        distinct: dict[str, int] = {}
        type_index, rows = [_NONE], _NONE
        for i, labels in enumerate(types):
            if not i or labels is not types[i - 1]:  # most texts share one list, which may hold thousands of labels
                rows = np.array([distinct.setdefault(label, len(distinct)) for label in labels], dtype=np.int64)
            type_index.append(rows)
        values = {field.name: getattr(packed, field.name) for field in fields(packed)}
        values["type_index"] = np.concatenate(type_index)
        return LabelArrays(**values, labels=tuple(distinct))
