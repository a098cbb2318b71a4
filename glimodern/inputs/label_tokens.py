"""The tokens of a bi-encoder's labels, each label by itself; imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .plain_text import plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LabelTokens:
    """The tokenizer of a bi-encoder's labels, read as plain text.

    max_tokens: maximum tokens of a label, with special tokens; longer labels are truncated. None: no limit.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int | None) -> None:
        self.tokenizer, _ = plain_tokenizer(tokenizer)
        self.max_tokens = max_tokens
        if max_tokens is not None:
            self.tokenizer.enable_truncation(max_tokens)

    def ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label, special tokens included. Warns if labels are truncated."""
        encodings = self.tokenizer.encode_batch(list(labels))
        if cut := [label for label, encoding in zip(labels, encodings, strict=True) if encoding.overflowing]:
            warnings.warn(
                f"labels: expected at most {self.max_tokens} tokens, the label encoder's limit, got more in "
                f"{len(cut)}, which are truncated: {', '.join(f'{label[:40]!r}...' for label in cut[:3])}",
                stacklevel=2,
            )
        return [encoding.ids for encoding in encodings]


def in_chunks(labels: Sequence[Sequence[int]], tokens: int) -> Iterator[Sequence[Sequence[int]]]:
    """Divide labels, given as token ids, into chunks of at most `tokens` tokens; a longer label is one alone."""
    first, room = 0, tokens
    for i, ids in enumerate(labels):
        if i > first and len(ids) > room:
            yield labels[first:i]
            first, room = i, tokens
        room -= len(ids)
    yield labels[first:]
