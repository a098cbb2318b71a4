"""Words with character offsets: the split that public GLiNER checkpoints were trained with.

A word is a run of word characters, joined by single hyphens or underscores ("state-of-the-art"), or any one
character that is neither a word character nor white space ("." or "€"). White space belongs to no word.
Pattern: the `whitespace` splitter of https://github.com/urchade/GLiNER.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")


class Word(NamedTuple):
    """One word: text == source[start:end], in characters, `end` exclusive."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """The words of `text` from left to right; [] for an empty or all-white-space text."""
    if not isinstance(text, str):
        raise TypeError(f"text: wanted a str, got {type(text).__name__}; pass one text at a time")
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]
