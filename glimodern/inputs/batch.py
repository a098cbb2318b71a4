"""Packed batches: all texts of a batch in one row of tokens, with offsets instead of padding and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .transfer import to_device

IntArray = npt.NDArray[np.int64]


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


def int32_offsets(lengths: Sequence[int]) -> Tensor:
    """Return the cumulative sum of `lengths` with a leading 0: int32 [len(lengths) + 1]."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


class TextTokens(NamedTuple):
    """Sub-tokens of a text's words, without prompt and special tokens.

    ids int64 [n]: token ids.
    starts int64 [words kept]: each word's first token, -1 for a word that the tokenizer maps to no token.
    words: number of words of the whole text, with those beyond max_words.
    """

    ids: IntArray
    starts: IntArray
    words: int

    @property
    def bounds(self) -> IntArray:
        """Number of tokens before each word kept, and of the text: int64 [words kept + 1]."""
        starts = np.where(self.starts < 0, len(self.ids), self.starts)
        return np.minimum.accumulate(np.append(starts, len(self.ids))[::-1])[::-1]

    def words_within(self, tokens: int) -> int:
        """Return the number of words read of a text that is cut to its first `tokens` tokens."""
        inside = np.flatnonzero((self.starts >= 0) & (self.starts < tokens))
        return int(inside[-1]) + 1 if len(inside) else 0

    def part(self, first: int, end: int, bounds: IntArray) -> "TextTokens":
        """Return the sub-tokens of the words first .. end - 1. bounds: this text's."""
        starts = self.starts[first:end]
        ids = self.ids[bounds[first] : bounds[end]]
        return TextTokens(ids, np.where(starts < 0, -1, starts - bounds[first]), end - first)


class PromptTokens(NamedTuple):
    """Sub-tokens of a prompt.

    ids int64 [n]: token ids.
    types int64 [types]: index into `ids` of the token whose hidden state is the type's vector.
    bounds int64 [types + 1]: offsets of each label's tokens in `ids`, its <<ENT>> included.
    """

    ids: IntArray
    types: IntArray
    bounds: IntArray


class LabelGroup(NamedTuple):
    """Consecutive labels of a label set that share a prompt.

    first: index of the first one in the label set.
    """

    first: int
    labels: tuple[str, ...]
    prompt: PromptTokens
