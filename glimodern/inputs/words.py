"""Words with character offsets, split as in the training of public GLiNER checkpoints.

A word is a run of word characters, joined by single hyphens or underscores ("state-of-the-art"), or one character that
is neither a word character nor white space ("." or "€"). White space belongs to no word.
Pattern: the `whitespace` splitter of https://github.com/urchade/GLiNER. The other splitters are in `splitters`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")


class Word(NamedTuple):
    """One word: text == source[start:end]; offsets in characters, `end` exclusive."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Split a text into words from left to right; [] for an empty or white-space text. Raises TypeError."""
    check_text(text)
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def check_text(text: Any) -> None:
    """Raise TypeError for a text that is not a string."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}; pass one text at a time")


def cut_words(words: Iterable[Word], bounds: Iterable[int]) -> list[Word]:
    """Return the words, each cut at the bounds that lie inside it. bounds: offsets in characters, in any order."""
    cuts = sorted(set(bounds))
    parts: list[Word] = []
    for word in words:
        inside = cuts[bisect_right(cuts, word.start) : bisect_left(cuts, word.end)]
        for start, end in pairwise((word.start, *inside, word.end)):
            parts.append(Word(word.text[start - word.start : end - word.start], start, end))
    return parts


Entity = tuple[int, int, str]
"""A gold or predicted entity: first word, last word (inclusive), label."""

WordSplitter = Callable[[str], list[Word]]

SplitterName = Literal[
    "whitespace", "unicode", "spacy", "jieba", "hanlp", "janome", "mecab", "camel", "hindi", "stanza", "universal"
]
"""A splitter, by the name of a checkpoint's `words_splitter_type`; all but "unicode" are gliner's."""
SPLITTERS: tuple[SplitterName, ...] = get_args(SplitterName)
DEFAULT_SPLITTER: SplitterName = "whitespace"


def check_splitter(name: Any, setting: str) -> None:
    """Raise ValueError for a name that is not in SPLITTERS. setting: its name in the message."""
    if name not in SPLITTERS:
        raise ValueError(
            f"{setting}: expected one of {', '.join(map(repr, SPLITTERS))}, got {name!r}; choose one of them, or split "
            "the text yourself and call predict_words"
        )


def word_splitter(name: str, setting: str = "words_splitter_type") -> WordSplitter:
    """Return the splitter of a name. setting: where the name was given, for messages.

    Raises ValueError for a name that is not in SPLITTERS, and for one whose package is not installed.
    """
    if name == "whitespace":
        return split_words
    check_splitter(name, setting)
    from .splitters import load_splitter

    return load_splitter(name, setting)
