"""Packed batches: all texts of a batch in one row of tokens, with offsets instead of padding and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tokens import LabelArrays, PackedArrays, offsets_of
from .transfer import to_device


@dataclass(frozen=True)
class PackedBatch:
    """A packed batch of b texts with N tokens, n words and m entity types; all tensors on one device.

    input_ids int64 [N]: token ids.
    cu_seqlens, cu_words, cu_types int32 [b + 1]: offsets of each text's tokens, words and types.
    max_seqlen: tokens of the longest text.
    word_index int64 [n]: the token whose hidden state is the word's vector (the word's first token if sub-tokens are
        pooled); -1 for a word that the tokenizer maps to no token, whose vector is zero.
    type_index int64 [m]: the token whose hidden state is the type's vector.
    positives int32 [P, 3]: distinct rows (word, width - 1, type), numbered over the whole batch.
    words_cut: number of words cut from the end of each text.
    entities_lost: number of gold entities that the batch cannot hold (wider than max_width, or cut off).
    has_missing_words: whether word_index holds a -1.
    subtoken_index int64 [s]: all tokens of all words; None unless sub-tokens are pooled.
    subtoken_counts int64 [n]: number of tokens of each word; None unless sub-tokens are pooled.
    token_offsets, word_offsets: cu_seqlens and cu_words on the host, readable without a device synchronisation.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    word_index: Tensor
    cu_words: Tensor
    type_index: Tensor
    cu_types: Tensor
    positives: Tensor
    words_cut: tuple[int, ...] = ()
    entities_lost: int = 0
    has_missing_words: bool = False
    subtoken_index: Tensor | None = None
    subtoken_counts: Tensor | None = None
    token_offsets: tuple[int, ...] | None = None
    word_offsets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, cu in (("token_offsets", self.cu_seqlens), ("word_offsets", self.cu_words)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, tuple(cu.tolist()))

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch with its tensors on `device`; host offsets are kept."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        moved: Any = to_device([getattr(self, name) for name in names], torch.device(device))
        return replace(self, **dict(zip(names, moved, strict=True)))


@dataclass(frozen=True, kw_only=True)
class LabelBatch(PackedBatch):
    """A batch of texts without prompts.

    labels: the distinct labels of all texts. type_index int64 [m] indexes `labels`, not the tokens.
    """

    labels: tuple[str, ...]


def batch_of(arrays: PackedArrays) -> PackedBatch:
    """Return the batch of packed arrays, a LabelBatch for a bi-encoder's, as tensors on the CPU that share memory."""
    values = {field.name: getattr(arrays, field.name) for field in fields(arrays)}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in values.items()
    }
    return LabelBatch(**tensors) if isinstance(arrays, LabelArrays) else PackedBatch(**tensors)


def int32_offsets(lengths: Sequence[int]) -> Tensor:
    """Return the cumulative sum of `lengths` with a leading 0: int32 [len(lengths) + 1]."""
    return torch.from_numpy(offsets_of(lengths))
