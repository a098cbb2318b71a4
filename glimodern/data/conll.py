"""CoNLL columns: conversion of lines to sentences of words and tags, and of tags to entities.

The column layout is detected once per file, from its content:

- The word is in the first column, or after an index that counts up within each sentence (CoNLL-U, Universal NER,
  GermEval: "1<tab>London<tab>B-LOC"). Columns before the index that are constant within a sentence are skipped
  (OntoNotes: document, part, index, word).
- The tag is in the last column. If that column holds no tags, it is in the last column that does, which may come before
  the word (MIT's corpora). OntoNotes' bracketed names ("(ORG*", "*", "*)") are in the eleventh column.

A tag is O, or a prefix and a type: B-PER, or B_PER. All schemes (BIO, IOB1, IOE, BIOES, BILOU, BMES, BMEWO) are read by
the same rules: B begins an entity, I and M continue it, E and L end it, S, U and W are entities of one word. A tag that
continues nothing begins an entity, as in conlleval.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glimodern.display import short
from glimodern.inputs.words import Entity

from .lines import Line

logger = logging.getLogger(__name__)

EXPECTED = "O or a type with a prefix of BIO, BIOES, BILOU or BMES, such as B-PER"

_TAG = re.compile(r"O|[BIMELSUW][-_][^|]*[^|\s][^|]*")  # no "|", which separates several tags: B-PER|B-ORG
_INDEX = re.compile(r"([0-9]{1,9})([-.][0-9]{1,9})?")
_BRACKETS = re.compile(r"\(([^()*]+)\*?\)?|\*\)?")
_COMMENT = re.compile(r"#(?:\s|#|$|begin document|end document|\S+\s*=)")
_KEY_VALUE = re.compile(r"#\s*\S+(?: \S+)? = ")
_CHUNKS = frozenset("NP VP PP ADVP ADJP SBAR PRT CONJP INTJ LST UCP NC VC PC AC".split())
_ONTONOTES = (3, 10)  # the columns of words and names
_SAMPLE = 1000  # sentences used to detect the layout
_MOST = 0.9  # minimum fraction of rows that fit a layout; the others count as faulty


class TokenRow(NamedTuple):
    """One line of a sentence: its number in the file, its columns, and the error if it is not valid text."""

    number: int
    columns: list[str]
    fault: str | None


Block = list[TokenRow]


class Layout(NamedTuple):
    """Column layout of a file; columns are numbered from 0.

    word, tag: columns of word and tag; tag -1: the last column. counter: column of the index, None if there is none.
    brackets: whether the tags are OntoNotes' brackets. least: minimum number of columns of a row.
    """

    word: int
    tag: int
    counter: int | None
    brackets: bool
    least: int


class BadTokenError(Exception):
    """A line of a sentence that cannot be read. number: its number in the file."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason


def read_blocks(lines: Sequence[Line]) -> list[Block]:
    """Split lines at blank lines and -DOCSTART- into non-empty sentences; comments are removed."""
    rows = [(line.text, TokenRow(line.number, _columns(line.text), line.fault)) for line in lines]
    shapes = Counter((len(row.columns), "\t" in text) for text, row in rows if row.columns and text[:1] != "#")
    common = {shape for shape, count in shapes.items() if count >= (1 - _MOST) * shapes.total()}
    blocks: list[Block] = [[]]
    for text, row in rows:
        if row.fault is not None:
            blocks[-1].append(row)
        elif not row.columns or ("-DOCSTART-" in text and any(c.startswith("-DOCSTART-") for c in row.columns[:4])):
            blocks.append([])
        elif not _is_comment(text, row.columns, common):
            blocks[-1].append(row)
    return [block for block in blocks if block]


def _columns(text: str) -> list[str]:
    """Split a line at tabs, or at spaces if it has no tab; [] for a blank line."""
    text = text.rstrip(" \t")
    if not text or text.isspace():
        return []
    if "\t" not in text:
        # not split(), which also splits at characters that may occur in a word, such as U+00A0 and U+2028
        return [cell for cell in text.split(" ") if cell]
    return [cell.strip(" ") for cell in text.split("\t")] if " " in text else text.split("\t")


def _is_comment(text: str, columns: list[str], common: set[tuple[int, bool]]) -> bool:
    """Return whether a line is a comment, in contrast to a word "#" or "#hashtag" with its tag.

    common: frequent (number of columns, whether split at tabs) of the lines that do not start with "#".
    """
    if not text.startswith("#"):
        return False
    fits = not common or (len(columns), "\t" in text) in common
    if fits and any(_TAG.fullmatch(cell) for cell in columns[1:]) and not _KEY_VALUE.match(text):
        return False
    return _COMMENT.match(text) is not None


def find_layout(blocks: Sequence[Block], name: str) -> Layout:
    """Detect the columns of words and tags from the first sentences. name: the file's name in a warning."""
    blocks = [[row for row in block if row.fault is None] for block in blocks[:_SAMPLE]]
    rows = [row.columns for block in blocks for row in block]
    index = next((column for column in range(3) if _is_index(blocks, column)), None)
    word = 0 if index is None else index + 1
    words = rows if index is None else [columns for columns in rows if _plain_index(columns, index)]
    width = Counter(map(len, words)).most_common(1)[0][0] if words else 2
    if index is not None and _fraction(words, _ONTONOTES[1], _BRACKETS.fullmatch) >= _MOST and word == _ONTONOTES[0]:
        return Layout(*_ONTONOTES, index, True, _ONTONOTES[1] + 1)
    first = 0 if index is None else word + 1
    tagged = [column for column in range(first, width) if _fraction(words, column, _TAG.fullmatch) >= _MOST]
    if not tagged or _fraction(words, -1, _TAG.fullmatch) >= 0.5:
        tag = -1
    else:
        tag = tagged[-1]
        if tag == 0:
            word = 1
    _warn_of_layers(words, [column for column in tagged if column not in (word, tag, width + tag)], name)
    return Layout(word, tag, index, False, word + 2 if tag == -1 else max(word, tag) + 1)


def _is_index(blocks: Sequence[Block], column: int) -> bool:
    """Return whether a column is an index: it counts up within each sentence, and all columns before it are constant.

    A word and its tag must follow it. A sentence begins at 0 or 1, or continues the count of the previous sentence.
    """
    total = sum(map(len, blocks))
    bad, most = 0, total - _MOST * total
    before: int | None = None
    for block in blocks:
        last: int | None = None
        for row in block:
            match = _INDEX.fullmatch(row.columns[column]) if len(row.columns) >= column + 3 else None
            if match is None or row.columns[:column] != block[0].columns[:column]:
                bad += 1
                if bad > most:
                    return False
            elif match[2] is None:
                value = int(match[1])
                bad += value <= last if last is not None else value > 1 and (before is None or value <= before)
                last = value
        before = last if last is not None else before
    return total > 0 and bad <= most


def _plain_index(columns: list[str], index: int) -> bool:
    """Return whether a row has an index such as "3", not "3-4" (a multi-word token) or "8.1" (an empty node)."""
    match = _INDEX.fullmatch(columns[index]) if len(columns) > index else None
    return match is not None and match[2] is None


def _fraction(rows: Sequence[list[str]], column: int, matches: Callable[[str], object]) -> float:
    """Return the fraction of rows whose cell in a column matches."""
    cells = Counter(columns[column] for columns in rows if -len(columns) <= column < len(columns))
    return sum(count for cell, count in cells.items() if matches(cell)) / max(len(rows), 1)


def _warn_of_layers(rows: Sequence[list[str]], others: Sequence[int], name: str) -> None:
    """Warn if another column holds entity tags too, apart from O and chunks such as B-NP."""
    for column in others:
        types = {columns[column][2:] for columns in rows if len(columns) > column} - {""}
        if types - _CHUNKS:
            logger.warning(
                "%s: column %d holds tags too (types %s); only the last column of tags is read",
                name, column + 1, ", ".join(sorted(types)[:5]),
            )  # fmt: skip


def words_and_tags(block: Block, layout: Layout) -> tuple[list[str], list[str]]:
    """Return the words of a sentence and their tags. Raises BadTokenError for a line that cannot be read."""
    words, tags = [], []
    for number, columns, fault in block:
        if fault is not None:
            raise BadTokenError(number, fault)
        if layout.counter is not None and (columns[0].startswith("#") or _no_word(columns, layout.counter)):
            continue
        if layout.counter is not None and not (
            len(columns) > layout.counter and _INDEX.fullmatch(columns[layout.counter])
        ):
            raise BadTokenError(
                number, f"expected an index in column {layout.counter + 1}, got {short(' '.join(columns))}"
            )
        if len(columns) < layout.least or not columns[layout.word]:
            raise BadTokenError(number, f"expected a word and its tag, got {short(' '.join(columns))}")
        tag = columns[layout.tag]
        if not (_BRACKETS if layout.brackets else _TAG).fullmatch(tag):
            which = "the last column" if layout.tag == -1 else f"column {layout.tag + 1}"
            raise BadTokenError(number, f"expected {EXPECTED}, in {which}, got {short(tag)}")
        words.append(columns[layout.word])
        tags.append(tag)
    return words, _from_brackets(tags) if layout.brackets else tags


def _no_word(columns: list[str], index: int) -> bool:
    """Return whether a row's index is a range or an empty node: "3-4", "8.1"."""
    match = _INDEX.fullmatch(columns[index]) if len(columns) > index else None
    return match is not None and match[2] is not None


def _from_brackets(cells: Sequence[str]) -> list[str]:
    """Convert OntoNotes' "(ORG*", "*", "*)" and "(ORG)" to BIO tags."""
    tags, current = [], ""
    for cell in cells:
        match = _BRACKETS.fullmatch(cell)
        opened = match[1] if match else None
        if opened:
            current = opened
        tags.append(f"{'B' if opened else 'I'}-{current}" if current else "O")
        if cell.endswith(")"):
            current = ""
    return tags


def is_tag(tag: object) -> bool:
    """Return whether a value is a tag in one of the schemes."""
    return isinstance(tag, str) and _TAG.fullmatch(tag) is not None


def tagged_spans(tags: Sequence[str]) -> list[Entity]:
    """Return the entities (first word, last word, type) of tags in any scheme; last is inclusive.

    A tag that continues nothing begins an entity.
    """
    entities: list[Entity] = []
    start, current = 0, ""
    for index, tag in enumerate(tags):
        prefix, entity_type = tag[0], tag[2:]
        if current and (prefix in "OBSUW" or entity_type != current):
            entities.append((start, index - 1, current))
            current = ""
        if prefix != "O" and not current:
            start, current = index, entity_type
        if prefix in "ELSUW":
            entities.append((start, index, current))
            current = ""
    if current:
        entities.append((start, len(tags) - 1, current))
    return entities
