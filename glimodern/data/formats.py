"""Readers of the four training formats: the rows of one file (or of a hub data set) become examples.

    gliner    {"tokenized_text": [words], "ner": [[first word, last word, label], ...]}: indices inclusive; the label
              may be a list of labels. Optional: "ner_labels" or "label" (the types to ask for), "ner_negatives" (types
              known to be absent).
    spans     {"text": ..., "entities": [{"start", "end", "label"} or [start, end, label], ...]}: characters, end
              exclusive; the key may be "spans" or "label" too. Optional: "types" or "ner_labels"; an entity's "text" is
              checked.
    conll     one word a line, with its tag in another column; a blank line or -DOCSTART- ends a sentence, "# ..."
              without a tag is a comment. Columns and tagging schemes: see `conll`. As JSON: {"tokens": [words],
              "ner_tags": [tags]}.
    pile-ner  {"conversations": [...]} as in https://huggingface.co/datasets/Universal-NER/Pile-NER-type: every string
              of an answer stands for all its occurrences on word boundaries, and the questions are the row's types (but
              not one whose answers all occur nowhere).

JSON comes as lines, as one array, or as pretty-printed objects; a JSON row's format is told by its keys. Compression,
encodings and line ends: see `lines`.
"""

from __future__ import annotations

import json
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimodern.inputs.words import Entity, split_words

from . import conll
from .example import Example
from .json_rows import Row, json_rows, show
from .lines import Line, open_input, read_lines, stem_and_suffix
from .tags import natural_label

FORMATS = ("auto", "gliner", "spans", "conll", "pile-ner")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

logger = logging.getLogger(__name__)

_QUESTION = re.compile(r"\s*What describes (.*\S) in the text\?\s*", re.DOTALL)
_JSON_START = re.compile(r'\s*(?:\{\s*["}]|\[\s*[{\]])')


class BadRowError(Exception):
    """A row that cannot be read. `where` replaces the row's own place if the fault's place is known better."""

    def __init__(self, reason: str, *, where: str | None = None, out_of_range: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.out_of_range = out_of_range


@dataclass(slots=True)
class Rows:
    """What was read: the examples, and counts of what is not among them.

    skipped: bad rows; out_of_range: those of them with an index outside their text.
    unmatched: answers of Pile-NER conversations that occur nowhere in their text on word boundaries.
    """

    examples: list[Example] = field(default_factory=list)
    skipped: int = 0
    out_of_range: int = 0
    unmatched: int = 0

    def extend(self, other: Rows) -> None:
        self.examples.extend(other.examples)
        self.skipped += other.skipped
        self.out_of_range += other.out_of_range
        self.unmatched += other.unmatched


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read: format (one of FORMATS), group of the examples, and tag -> label names for conll."""

    format: str = "auto"
    skip_bad_rows: bool = False
    group: str | None = None
    label_names: Mapping[str, str] | None = None


def read_file(path: Path, options: ReadOptions) -> Rows:
    """The rows of one file, or of a pipe, read once. A bad row is a ValueError, or is counted (skip_bad_rows).

    The error names file and line ("file:7"), or file and element ("file[7]", from 0) in a JSON array.
    """
    name = str(path)
    with open_input(path) as stream:
        lines = list(read_lines(stream, name))
    if _is_json(path, lines, options.format):
        return read_rows(name, json_rows(lines, name), options)
    blocks = conll.read_blocks(lines)
    layout = conll.find_layout(blocks, name)
    sentences = (Row(f"{name}:{block[0].number}", block) for block in blocks)
    return _collect(name, sentences, lambda block, where, rows: _conll(block, layout, name, where, options), options)


def read_rows(source: str, raw: Iterable[Row], options: ReadOptions) -> Rows:
    """The rows of JSON values, wherever they come from."""
    return _collect(source, raw, lambda row, where, rows: _json_row(row, where, rows, options), options)


def _collect(
    source: str,
    raw: Iterable[Row],
    parse: Callable[[Any, str, Rows], Example],
    options: ReadOptions,
) -> Rows:
    rows = Rows()
    first_reason = ""
    for place, value, fault in raw:
        try:
            if fault is not None:
                raise BadRowError(fault)
            rows.examples.append(parse(value, place, rows))
        except BadRowError as bad:
            reason = f"{bad.where or place}: {bad.reason}"
            if not options.skip_bad_rows:
                raise ValueError(f"{reason}. Correct the row, or leave bad rows out (skip_bad_rows)") from bad
            first_reason = first_reason or reason
            rows.skipped += 1
            rows.out_of_range += bad.out_of_range
    if rows.skipped:
        total = rows.skipped + len(rows.examples)
        if not rows.examples:
            raise ValueError(f"{source}: none of its {total} rows can be read; the first: {first_reason}")
        logger.warning("%s: left out %d bad rows of %d; the first: %s", source, rows.skipped, total, first_reason)
    elif not rows.examples:
        raise ValueError(f"{source}: expected at least one sentence, got none")
    return rows


def _is_json(path: Path, lines: Sequence[Line], format: str) -> bool:
    if stem_and_suffix(path)[1] in JSON_SUFFIXES or format in ("gliner", "spans", "pile-ner"):
        return True
    filled = (line.text for line in lines if line.text.strip())
    start = "\n".join(text for text, _ in zip(filled, range(2), strict=False))
    return _JSON_START.match(start) is not None


# --- JSON rows ---------------------------------------------------------------------------------------------------


def _json_row(row: Any, where: str, rows: Rows, options: ReadOptions) -> Example:
    if not isinstance(row, dict):
        raise BadRowError(f"expected a JSON object, got {show(row)}")
    kind = _format_of(row, options.format)
    if kind == "gliner":
        example = _gliner(row, where, options)
    elif kind == "spans":
        example = _spans(row, where, options)
    elif kind == "conll":
        words = _words(row, "tokens")
        example = _tagged(words, _tags(row, len(words)), where, options)
    else:
        example = _pile_ner(row, where, rows, options)
    return example


def _format_of(row: dict[str, Any], format: str) -> str:
    if "tokenized_text" in row:
        found = "gliner"
    elif "conversations" in row:
        found = "pile-ner"
    elif "tokens" in row and ("ner_tags" in row or "tags" in row):
        found = "conll"
    elif "text" in row:
        found = "spans"
    else:
        found = "none"
    if found == "none" or format not in ("auto", found):
        keys = {
            "gliner": '"tokenized_text" and "ner"',
            "spans": '"text" and "entities"',
            "conll": '"tokens" and "ner_tags"',
            "pile-ner": '"conversations"',
        }
        wish = " or ".join(keys.values()) if format == "auto" else f"{keys[format]} (format={format!r})"
        raise BadRowError(f"expected the keys {wish}, got {show(sorted(row))}")
    return found


def _gliner(row: dict[str, Any], where: str, options: ReadOptions) -> Example:
    words = _words(row, "tokenized_text")
    ner = row.get("ner")
    if not isinstance(ner, list):
        raise BadRowError(
            f'"ner": expected a list of [first word, last word, label], [] for no entity, got {show(ner)}'
        )
    count = len(words)
    entities: list[Entity] = []
    for entry in ner:
        if not isinstance(entry, (list, tuple)) or len(entry) != 3:
            raise BadRowError(f'"ner": expected [first word, last word, label], got {show(entry)}')
        start, end, labels = entry
        if type(start) is not int or type(end) is not int:
            raise BadRowError(f'"ner": expected two whole word indices and a label, got {show(entry)}')
        if not 0 <= start <= end < count:
            raise BadRowError(
                f'"ner": expected 0 <= first word <= last word < {count} (the number of words), got {show(entry)}',
                out_of_range=True,
            )
        for label in labels if isinstance(labels, list) and labels else (labels,):
            entities.append((start, end, _label(label, entry)))
    types = _types(row, "ner_labels", "label")
    negatives = _types(row, "ner_negatives")
    if types is None and negatives is not None:
        types = tuple(dict.fromkeys(label for _, _, label in entities))
    if types is not None and negatives is not None:
        types = tuple(dict.fromkeys(types + negatives))
    return Example(words, entities, where, types=types, group=options.group)


def _spans(row: dict[str, Any], where: str, options: ReadOptions) -> Example:
    text = _text(row["text"], '"text"')
    key = next((name for name in ("entities", "spans", "label") if name in row), "entities")
    spans = row.get(key)
    if not isinstance(spans, list):
        raise BadRowError(
            f'"{key}": expected a list of {{"start", "end", "label"}}, [] for no entity, got {show(spans)}'
        )
    words = split_words(text)
    starts = {word.start: index for index, word in enumerate(words)}
    ends = {word.end: index for index, word in enumerate(words)}
    entities: list[Entity] = []
    for entry in spans:
        start, end, label = _span(entry, key)
        if not 0 <= start < end <= len(text):
            raise BadRowError(
                f'"{key}": expected 0 <= start < end <= {len(text)} (characters in the text), got {show(entry)}',
                out_of_range=True,
            )
        if isinstance(entry, dict) and entry.get("text", text[start:end]) != text[start:end]:
            raise BadRowError(
                f'"{key}": the text of {show(entry)} is not what stands there, {show(text[start:end])};'
                " offsets count characters (not bytes or UTF-16 units)"
            )
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start == end:
            raise BadRowError(f'"{key}": expected a span with a word in it, got only white space, {show(entry)}')
        first, last = starts.get(start), ends.get(end)
        if first is None or last is None:
            at = start if first is None else end - 1
            cut = words[bisect_right(words, at, key=lambda word: word.start) - 1]
            raise BadRowError(
                f'"{key}": expected a span of whole words, got characters {start} to {end}, {show(text[start:end])},'
                f" which cuts the word {show(cut.text)} (characters {cut.start} to {cut.end}); move it to"
                ' the word\'s edge, or give your own words as "tokenized_text"'
            )
        entities.append((first, last, label))
    return Example(
        [word.text for word in words],
        entities,
        where,
        text,
        [(word.start, word.end) for word in words],
        _types(row, "types", "ner_labels"),
        options.group,
    )


def _span(entry: Any, key: str) -> tuple[int, int, str]:
    if isinstance(entry, dict):
        start, end, label = entry.get("start"), entry.get("end"), entry.get("label")
    elif isinstance(entry, (list, tuple)) and len(entry) == 3:
        start, end, label = entry
    else:
        raise BadRowError(f'"{key}": expected {{"start", "end", "label"}} or [start, end, label], got {show(entry)}')
    if type(start) is not int or type(end) is not int:
        raise BadRowError(f'"{key}": expected two whole character offsets and a label, got {show(entry)}')
    return start, end, _label(label, entry)


def _pile_ner(row: dict[str, Any], where: str, rows: Rows, options: ReadOptions) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRowError(f'"conversations": expected a list of {{"from", "value"}}, got {show(turns)}')
    said = [_text(turn.get("value"), '"value"') for turn in turns]
    if len(said) < 2 or len(said) % 2 or not said[0].startswith("Text:"):
        raise BadRowError(
            '"conversations": expected "Text: ...", a reply to it, then pairs of question and answer,'
            f" got {len(said)} turns starting with {show(said[0] if said else None)}"
        )
    text = said[0].removeprefix("Text:").strip()
    words = split_words(text)
    starts = {word.start: index for index, word in enumerate(words)}
    ends = {word.end: index for index, word in enumerate(words)}
    entities: dict[Entity, None] = {}
    types: dict[str, None] = {}
    unmatched = 0
    for question, answer in zip(said[2::2], said[3::2], strict=True):
        asked = _QUESTION.fullmatch(question)
        if asked is None:
            raise BadRowError(f'"conversations": expected "What describes TYPE in the text?", got {show(question)}')
        label = asked.group(1).strip()
        mentions = _answer(answer)
        places = [_occurrences(mention, text, starts, ends) for mention in mentions]
        found = [(first, last, label) for spans in places for first, last in spans]
        lost = sum(1 for spans in places if not spans)
        entities.update(dict.fromkeys(found))
        unmatched += lost
        # A type with answers of which none is in the text is neither present nor absent for sure: not asked.
        if found or not lost:
            types[label] = None
    rows.unmatched += unmatched
    return Example(
        [word.text for word in words],
        list(entities),
        where,
        text,
        [(word.start, word.end) for word in words],
        tuple(types),
        options.group,
    )


def _answer(answer: str) -> list[str]:
    try:
        mentions = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f'"conversations": expected a JSON list of strings as answer, got {show(answer)}') from error
    if not isinstance(mentions, list) or not all(isinstance(mention, str) for mention in mentions):
        raise BadRowError(f'"conversations": expected a JSON list of strings as answer, got {show(answer)}')
    return list(dict.fromkeys(mention.strip() for mention in mentions))


def _occurrences(mention: str, text: str, starts: dict[int, int], ends: dict[int, int]) -> list[tuple[int, int]]:
    """(first word, last word) of every place where `mention` stands in `text` and begins and ends with a word."""
    found = []
    at = text.find(mention) if mention else -1
    while at >= 0:
        first, last = starts.get(at), ends.get(at + len(mention))
        if first is not None and last is not None:
            found.append((first, last))
        at = text.find(mention, at + 1)
    return found


# --- CoNLL -------------------------------------------------------------------------------------------------------


def _conll(block: conll.Block, layout: conll.Layout, name: str, where: str, options: ReadOptions) -> Example:
    try:
        words, tags = conll.words_and_tags(block, layout)
    except conll.BadTokenError as bad:
        raise BadRowError(bad.reason, where=f"{name}:{bad.number}") from bad
    return _tagged(words, tags, where, options)


def _tagged(words: list[str], tags: Sequence[str], where: str, options: ReadOptions) -> Example:
    entities = [(start, end, natural_label(tag, options.label_names)) for start, end, tag in conll.tagged_spans(tags)]
    return Example(words, entities, where, group=options.group)


def _tags(row: dict[str, Any], count: int) -> list[str]:
    tags = row.get("ner_tags", row.get("tags"))
    if not isinstance(tags, list) or len(tags) != count:
        got = f"{len(tags)}" if isinstance(tags, list) else show(tags)
        raise BadRowError(f'"ner_tags": expected one tag for each of the {count} words, got {got}')
    for tag in tags:
        if not conll.is_tag(tag):
            raise BadRowError(f'"ner_tags": expected {conll.EXPECTED}, got {show(tag)}')
        _text(tag, '"ner_tags"')
    return tags


# --- pieces of a row ---------------------------------------------------------------------------------------------


def _words(row: dict[str, Any], key: str) -> list[str]:
    words = row[key]
    if not isinstance(words, list):
        raise BadRowError(f'"{key}": expected a list of words, got {show(words)}')
    for word in words:
        _text(word, f'a word of "{key}"')
    return words


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{what}: expected a string, got {show(value)}")
    # Half of a surrogate pair is legal in JSON ("\ud83d") but is no character: no tokenizer takes it.
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRowError(f"{what}: expected Unicode text, got half of a surrogate pair in {show(value)}")
    return value


def _label(label: Any, entry: Any) -> str:
    if not isinstance(label, str) or not label.strip():
        raise BadRowError(f"label: expected a string that is not blank, got {show(label)} in {show(entry)}")
    return _text(label, "label")


def _types(row: dict[str, Any], *keys: str) -> tuple[str, ...] | None:
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            raise BadRowError(f'"{key}": expected a list of entity types, got {show(value)}')
        return tuple(dict.fromkeys(_label(label, value) for label in value))
    return None
