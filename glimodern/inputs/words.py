"""Words with character offsets, split as in the training of public GLiNER checkpoints.

A word is a run of word characters, joined by single hyphens or underscores ("state-of-the-art"), or one character that
is neither a word character nor white space ("." or "€"). White space belongs to no word.
Pattern: the `whitespace` splitter of https://github.com/urchade/GLiNER.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")


class Word(NamedTuple):
    """One word: text == source[start:end]; offsets in characters, `end` exclusive."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Split a text into words from left to right; [] for an empty or white-space text. Raises TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}; pass one text at a time")
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


Entity = tuple[int, int, str]
"""A gold or predicted entity: first word, last word (inclusive), label."""

WordSplitter = Callable[[str], list[Word]]


@functools.cache
def word_splitter(name: str) -> WordSplitter:
    """Return the splitter that a checkpoint's `words_splitter_type` names.

    "whitespace" is `split_words`. "spacy" is spaCy's English tokenizer; it yields white space as words, as in the
    public package. Raises ValueError for another name, and for "spacy" without the package.
    """
    if name == "whitespace":
        return split_words
    if name != "spacy":
        raise ValueError(
            f"words_splitter_type: expected 'whitespace' or 'spacy', got {name!r}: not supported, because another "
            "package splits its words; split the text with it and call predict_words"
        )
    try:
        import spacy
    except ImportError as error:
        raise ValueError(
            "words_splitter_type: expected the package spacy for 'spacy', got none; pip install spacy"
        ) from error
    tokenize = spacy.blank("en")
    return lambda text: [Word(token.text, token.idx, token.idx + len(token.text)) for token in tokenize(text)]
