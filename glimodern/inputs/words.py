"""Words with character offsets: the split that public GLiNER checkpoints were trained with.

A word is a run of word characters, joined by single hyphens or underscores ("state-of-the-art"), or any one
character that is neither a word character nor white space ("." or "€"). White space belongs to no word.
Pattern: the `whitespace` splitter of https://github.com/urchade/GLiNER.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
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
        raise TypeError(f"text: expected a str, got {type(text).__name__}; pass one text at a time")
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


Entity = tuple[int, int, str]
"""A gold or found entity: its first word, its last word (inclusive), its label."""

WordSplitter = Callable[[str], list[Word]]


@functools.cache
def word_splitter(kind: str) -> WordSplitter:
    """The splitter that a checkpoint's `words_splitter_type` names: "whitespace" (split_words) or "spacy" (spaCy's
    tokenizer for English, white space included, as the public package runs it). ValueError for another."""
    if kind == "whitespace":
        return split_words
    if kind != "spacy":
        raise ValueError(
            f"words_splitter_type: expected 'whitespace' or 'spacy', got {kind!r}: not supported, because its words "
            "come from another package; split the text with it and call predict_words"
        )
    try:
        import spacy
    except ImportError as error:
        raise ValueError("words_splitter_type: 'spacy' needs the package spacy, got none; pip install spacy") from error
    tokenize = spacy.blank("en")
    return lambda text: [Word(token.text, token.idx, token.idx + len(token.text)) for token in tokenize(text)]
