"""Batches for a bi-encoder: texts without a prompt, and their labels as strings."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from .batch import IntArray, PackedBatch, PromptTokens, TextTokens
from .packer import Packer
from .words import Entity

_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class LabelBatch(PackedBatch):
    """A batch of texts without prompts.

    labels: the distinct labels of all texts. type_index int64 [m] indexes `labels`, not the tokens.
    """

    labels: tuple[str, ...]


class TextPacker(Packer):
    """Packer of words alone, `[CLS] words... [SEP]`; labels are passed on as strings."""

    asks_in_text = False

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """Return an empty prompt."""
        return PromptTokens(_NONE, _NONE, _NONE)

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Return zeros, int64 [labels]."""
        return np.zeros(len(labels), dtype=np.int64)

    def pack_tokens(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
        prompts: Sequence[PromptTokens] | None = None,
    ) -> LabelBatch:
        """Pack tokenised texts; types[i] are the labels of texts[i], and `LabelBatch.labels` the distinct ones."""
        batch = super().pack_tokens(texts, types, entities, prompts)
        distinct: dict[str, int] = {}
        type_index, rows = [_NONE], _NONE
        for i, labels in enumerate(types):
            if not i or labels is not types[i - 1]:  # most texts share one list, which may hold thousands of labels
                rows = np.array([distinct.setdefault(label, len(distinct)) for label in labels], dtype=np.int64)
            type_index.append(rows)
        packed = {field.name: getattr(batch, field.name) for field in fields(batch)}
        packed["type_index"] = torch.from_numpy(np.concatenate(type_index))
        return LabelBatch(**packed, labels=tuple(distinct))
