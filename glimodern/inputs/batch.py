"""Packed batches: the texts of a batch in one row of tokens, with offsets instead of padding and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .transfer import to_device

if TYPE_CHECKING:
    pass

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedBatch:
    """b texts, N tokens, n words and m entity types, packed; tensors on one device.

    input_ids int64 [N]; cu_seqlens, cu_words, cu_types int32 [b + 1]; word_index int64 [n], the token whose hidden
    state is the word's vector (its first, if its sub-tokens are pooled), -1 for a word the tokenizer turns into nothing
    (its vector is zero); type_index int64 [m]; positives int32 [P, 3], distinct rows (word, width - 1, type), counted
    in the whole batch. subtoken_index int64 [s], all tokens of all words, and subtoken_counts int64 [n], tokens of each
    word: None unless sub-tokens are pooled.
    token_offsets, word_offsets: cu_seqlens and cu_words on the host, where whoever asks need not wait for a device.
    words_cut: per text, how many words at its end did not fit. entities_lost: gold entities that the batch cannot
    hold (wider than max_width, or cut off).
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
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        moved: Any = to_device([getattr(self, name) for name in names], torch.device(device))
        return replace(self, **dict(zip(names, moved, strict=True)))


def int32_offsets(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


class TextTokens(NamedTuple):
    """The sub-tokens of a text's words, without prompt and special tokens.

    ids int64 [n]; starts int64 [words kept], each word's first token, -1 for a word the tokenizer turns into nothing;
    words: of the whole text, those beyond max_words included.
    """

    ids: IntArray
    starts: IntArray
    words: int


class PromptTokens(NamedTuple):
    """The sub-tokens of a prompt, int64 [n], and the places among them of its type vectors, int64 [types].

    bounds int64 [types + 1]: where each label's tokens begin, with its <<ENT>>, and where the last one's end.
    """

    ids: IntArray
    types: IntArray
    bounds: IntArray
