"""Batches of a bi-encoder: texts without a prompt, their labels beside them."""

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
    """A batch of texts without prompts. labels: the distinct ones asked of its texts; type_index int64 [m] counts in
    them, not in the tokens."""

    labels: tuple[str, ...]


class TextPacker(Packer):
    """Packs words alone, `[CLS] words... [SEP]`; the labels go beside them, as they are."""

    asks_in_text = False

    def prompt(self, types: Sequence[str]) -> PromptTokens:
        """No tokens, whatever is asked."""
        return PromptTokens(_NONE, _NONE, _NONE)

    def label_lengths(self, labels: Sequence[str]) -> IntArray:
        """Zero for each label."""
        return np.zeros(len(labels), dtype=np.int64)

    def pack_tokens(
        self,
        texts: Sequence[TextTokens],
        types: Sequence[Sequence[str]],
        entities: Sequence[Sequence[Entity]] | None = None,
        prompts: Sequence[PromptTokens] | None = None,
    ) -> LabelBatch:
        batch = super().pack_tokens(texts, types, entities, prompts)
        distinct: dict[str, int] = {}
        index, rows = [_NONE], _NONE
        for i, asked in enumerate(types):
            if not i or asked is not types[i - 1]:  # most texts are asked the same list, thousands long maybe
                rows = np.array([distinct.setdefault(label, len(distinct)) for label in asked], dtype=np.int64)
            index.append(rows)
        packed = {field.name: getattr(batch, field.name) for field in fields(batch)}
        packed["type_index"] = torch.from_numpy(np.concatenate(index))
        return LabelBatch(**packed, labels=tuple(distinct))
