"""Tokens of texts and prompts, and batches of them as arrays: what packing makes, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PackedArrays:
    """A packed batch in NumPy; the fields are those of `batch.PackedBatch`."""

    input_ids: IntArray
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    word_index: IntArray
    cu_words: npt.NDArray[np.int32]
    type_index: IntArray
    cu_types: npt.NDArray[np.int32]
    positives: npt.NDArray[np.int32]
    words_cut: tuple[int, ...]
    entities_lost: int
    has_missing_words: bool
    subtoken_index: IntArray | None
    subtoken_counts: IntArray | None


@dataclass(frozen=True, kw_only=True)
class LabelArrays(PackedArrays):
    """A bi-encoder's packed batch in NumPy; the fields are those of `batch.LabelBatch`."""

    labels: tuple[str, ...]


def offsets_of(lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """Return the cumulative sum of `lengths` with a leading 0: int32 [len(lengths) + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)


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
