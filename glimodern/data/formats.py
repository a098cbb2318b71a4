"""Readers of the training formats: they convert the rows of a file, a table or a hub data set to examples.

    gliner    {"tokenized_text": [words], "ner": [[first word, last word, label], ...]}: indices inclusive; the label
              may be a list of labels. Optional: "types", "ner_labels" or "label" (the entity types to find),
              "ner_negatives" (types without an entity in the text).
    spans     {"text": ..., "entities": [{"start", "end", "label"} or [start, end, label], ...]}: character offsets, end
              exclusive; the key may also be "spans" or "label". Optional: "types" or "ner_labels" (the entity types to
              find). If an entity has a "text", it is compared with the text at its offsets.
    conll     one word per line, with its tag in another column; a blank line or -DOCSTART- ends a sentence, "# ..."
              without a tag is a comment. Columns and tagging schemes: see `conll`. As JSON: {"tokens": [words],
              "ner_tags": [tags]}.
    pile-ner  {"conversations": [...]} as in https://huggingface.co/datasets/Universal-NER/Pile-NER-type: every string
              of an answer marks all its occurrences on word boundaries. The questions name the row's types; a type is
              left out if it has answers and none of them occurs in the text.

    label-studio, doccano, prodigy    JSON exports of these tools; docbin    spaCy's .spacy files: see
              `glimodern.data.convert`. They are read as spans are. Rows that hold no gold annotation are left out, and
              counted by their reason.

JSON may be one object per line, one array, or pretty-printed objects; the keys of a JSON row determine its format.
Prodigy's rows are told from spans by a hash or an answer, Doccano's by "start_offset", "labels" or "relations", Label
Studio's by "data" or by regions with "labels". A file named .spacy is docbin. One named .parquet is a table (`tables`)
whose rows are those of JSON.
Compression, encodings and line ends: see `lines`.
"""

from __future__ import annotations

import json
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimodern.display import short
from glimodern.inputs.words import DEFAULT_SPLITTER, Entity, cut_words, word_splitter

from . import conll, tables
from .convert import docbin, doccano, label_studio, prodigy
from .example import Example
from .fields import BadRowError, LeftOutError, label_field, text_field, types_field, words_field
from .json_rows import Row, json_rows
from .lines import Line, open_input, read_lines, stem_and_suffix
from .tags import natural_label

FORMATS = ("auto", "gliner", "spans", "conll", "pile-ner", "label-studio", "doccano", "prodigy", "docbin")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

logger = logging.getLogger(__name__)

_TEXT_FORMATS = ("spans", "doccano", "prodigy")  # of a row with a "text", if its format is given
_QUESTION = re.compile(r"\s*What describes (.*\S) in the text\?\s*", re.DOTALL)
_JSON_START = re.compile(r'\s*(?:\{\s*["}]|\[\s*[{\]])')


@dataclass(slots=True)
class Rows:
    """Examples read, and counts of skipped content.

    skipped: bad rows. out_of_range: bad rows with an index outside their text.
    unmatched: answers in Pile-NER conversations that do not occur in their text on word boundaries.
    left_out: rows without gold annotation, by reason. notes: what else was not read, or was converted, by kind.
    seen: tasks of which an annotation was read, in formats that have a row for each annotation.
    """

    examples: list[Example] = field(default_factory=list)
    skipped: int = 0
    out_of_range: int = 0
    unmatched: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    seen: set[Hashable] = field(default_factory=set)

    def extend(self, other: Rows) -> None:
        self.examples.extend(other.examples)
        self.skipped += other.skipped
        self.out_of_range += other.out_of_range
        self.unmatched += other.unmatched
        self.left_out.update(other.left_out)
        self.notes.update(other.notes)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading rows.

    format: one of FORMATS. group: group of the examples. label_names: {tag: label} for conll. splitter: of a row's
    text into words, in formats with a text. text_key: the field of a Label Studio task with the text; None: see
    `convert.label_studio`. cut_words: cut words where an entity begins or ends inside one, instead of refusing the row.
    """

    format: str = "auto"
    skip_bad_rows: bool = False
    group: str | None = None
    label_names: Mapping[str, str] | None = None
    splitter: str = DEFAULT_SPLITTER
    text_key: str | None = None
    cut_words: bool = False


def read_file(path: Path, options: ReadOptions) -> Rows:
    """Read the rows of a file or a pipe. A bad row raises ValueError, or is counted (skip_bad_rows).

    The error gives file and line ("file:7"), or file and element ("file[7]", from 0) of a JSON array.
    """
    name = str(path)
    suffix = path.suffix.lower()
    if options.format == "docbin" or (suffix == docbin.SUFFIX and options.format == "auto"):
        return _collect(name, docbin.read_docs(path), lambda doc, where, rows: _doc(doc, where, rows, options), options)
    if suffix == tables.SUFFIX:
        return read_rows(name, tables.parquet_rows(path), options)
    with open_input(path) as stream:
        lines = list(read_lines(stream, name))
    if _is_json(path, lines, options.format):
        return read_rows(name, json_rows(lines, name), options)
    blocks = conll.read_blocks(lines)
    layout = conll.find_layout(blocks, name)
    sentences = (Row(f"{name}:{block[0].number}", block) for block in blocks)
    return _collect(name, sentences, lambda block, where, rows: _conll(block, layout, name, where, options), options)


def read_rows(source: str, raw: Iterable[Row], options: ReadOptions) -> Rows:
    """Read rows that are JSON values. source: its name in messages."""
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
        except LeftOutError as left:
            rows.left_out[left.reason] += 1
        except BadRowError as bad:
            reason = f"{bad.where or place}: {bad.reason}"
            if not options.skip_bad_rows:
                raise ValueError(f"{reason}. Correct the row, or skip bad rows (skip_bad_rows)") from bad
            first_reason = first_reason or reason
            rows.skipped += 1
            rows.out_of_range += bad.out_of_range
    if rows.skipped:
        total = rows.skipped + len(rows.examples) + rows.left_out.total()
        if not rows.examples:
            raise ValueError(f"{source}: none of its {total} rows can be read; the first: {first_reason}")
        logger.warning("%s: skipped %d bad rows of %d; the first: %s", source, rows.skipped, total, first_reason)
    elif not rows.examples and not rows.left_out:
        raise ValueError(f"{source}: expected at least one sentence, got none")
    if rows.left_out:
        counts = counted(rows.left_out)
        if not rows.examples:
            raise ValueError(f"{source}: expected gold annotations, got only rows without: {counts}; annotate some")
        logger.warning("%s: left out rows without gold annotations: %s", source, counts)
    if noted := counted(rows.notes):
        logger.warning("%s: %s", source, noted)
    return rows


def counted(counts: Counter[str]) -> str:
    """Return counts as text: "2 answered reject, 1 not annotated"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _is_json(path: Path, lines: Sequence[Line], format: str) -> bool:
    if stem_and_suffix(path)[1] in JSON_SUFFIXES or format not in ("auto", "conll"):
        return True
    filled = (line.text for line in lines if line.text.strip())
    start = "\n".join(text for text, _ in zip(filled, range(2), strict=False))
    return _JSON_START.match(start) is not None


# --- JSON rows ---------------------------------------------------------------------------------------------------


def _json_row(row: Any, where: str, rows: Rows, options: ReadOptions) -> Example:
    if not isinstance(row, dict):
        raise BadRowError(f"expected a JSON object, got {short(row)}")
    row_format = _format_of(row, options.format)
    if row_format == "gliner":
        example = _gliner(row, where, options)
    elif row_format == "spans":
        example = _spans(row, where, rows, options)
    elif row_format == "label-studio":
        spans = label_studio.to_spans(row, rows.notes, options.text_key, rows.seen)
        example = _spans(spans, where, rows, options)
    elif row_format == "doccano":
        example = _spans(doccano.to_spans(row, rows.notes), where, rows, options)
    elif row_format == "prodigy":
        example = _spans(prodigy.to_spans(row, rows.notes), where, rows, options)
    elif row_format == "conll":
        words = words_field(row, "tokens")
        example = _tagged(words, _tags(row, len(words)), where, options)
    else:
        example = _pile_ner(row, where, rows, options)
    return example


def _format_of(row: dict[str, Any], format: str) -> str:
    """Return a row's format by its keys. Raises BadRowError for unknown keys or another format than requested."""
    if "tokenized_text" in row:
        detected = "gliner"
    elif "conversations" in row:
        detected = "pile-ner"
    elif "tokens" in row and ("ner_tags" in row or "tags" in row):
        detected = "conll"
    elif label_studio.is_label_studio(row):
        detected = "label-studio"
    elif "text" in row and format in _TEXT_FORMATS:
        detected = format
    elif "text" in row:
        detected = "prodigy" if prodigy.is_prodigy(row) else "doccano" if doccano.is_doccano(row) else "spans"
    else:
        detected = "none"
    if detected == "none" or format not in ("auto", detected):
        keys = {
            "gliner": '"tokenized_text" and "ner"',
            "spans": '"text" and "entities"',
            "conll": '"tokens" and "ner_tags"',
            "pile-ner": '"conversations"',
            "label-studio": '"data" and "annotations"',
            "doccano": '"text" and "label"',
            "prodigy": '"text" and "spans"',
        }
        expected = " or ".join(keys.values()) if format == "auto" else f"{keys[format]} (format={format!r})"
        raise BadRowError(f"expected the keys {expected}, got {short(sorted(row))}")
    return detected


def _gliner(row: dict[str, Any], where: str, options: ReadOptions) -> Example:
    words = words_field(row, "tokenized_text")
    ner = row.get("ner")
    if not isinstance(ner, list):
        raise BadRowError(
            f'"ner": expected a list of [first word, last word, label], [] for no entity, got {short(ner)}'
        )
    count = len(words)
    entities: list[Entity] = []
    for entry in ner:
        if not isinstance(entry, (list, tuple)) or len(entry) != 3:
            raise BadRowError(f'"ner": expected [first word, last word, label], got {short(entry)}')
        start, end, labels = entry
        if type(start) is not int or type(end) is not int:
            raise BadRowError(f'"ner": expected two whole word indices and a label, got {short(entry)}')
        if not 0 <= start <= end < count:
            raise BadRowError(
                f'"ner": expected 0 <= first word <= last word < {count} (the number of words), got {short(entry)}',
                out_of_range=True,
            )
        for label in labels if isinstance(labels, list) and labels else (labels,):
            entities.append((start, end, label_field(label, entry)))
    types = types_field(row, "types", "ner_labels", "label")
    negatives = types_field(row, "ner_negatives")
    if types is None and negatives is not None:
        types = tuple(dict.fromkeys(label for _, _, label in entities))
    if types is not None and negatives is not None:
        types = tuple(dict.fromkeys(types + negatives))
    return Example(words, entities, where, types=types, group=options.group)


def _spans(row: dict[str, Any], where: str, rows: Rows, options: ReadOptions) -> Example:
    text = text_field(row["text"], '"text"')
    key = next((name for name in ("entities", "spans", "label") if name in row), "entities")
    spans = row.get(key)
    if not isinstance(spans, list):
        raise BadRowError(
            f'"{key}": expected a list of {{"start", "end", "label"}}, [] for no entity, got {short(spans)}'
        )
    found = [_checked_span(entry, key, text) for entry in spans]
    words = word_splitter(options.splitter, "splitter")(text)
    if options.cut_words:
        whole = len(words)
        words = cut_words(words, (offset for start, end, _ in found for offset in (start, end)))
        rows.notes["cuts of words where an entity begins or ends inside one"] += len(words) - whole
    starts = {word.start: index for index, word in enumerate(words)}
    ends = {word.end: index for index, word in enumerate(words)}
    entities: list[Entity] = []
    for start, end, label in found:
        first, last = starts.get(start), ends.get(end)
        if first is None or last is None:
            offset = start if first is None else end - 1
            split = words[bisect_right(words, offset, key=lambda word: word.start) - 1]
            raise BadRowError(
                f'"{key}": expected a span of whole words, got characters {start} to {end}, {short(text[start:end])},'
                f" which splits the word {short(split.text)} (characters {split.start} to {split.end}); move it to"
                ' the word\'s edge, or give your own words as "tokenized_text"'
            )
        entities.append((first, last, label))
    return Example(
        [word.text for word in words],
        entities,
        where,
        text,
        [(word.start, word.end) for word in words],
        types_field(row, "types", "ner_labels"),
        options.group,
    )


def _checked_span(entry: Any, key: str, text: str) -> Entity:
    """Return (start, end, label) of an entity in characters, without white space at its ends."""
    start, end, label = _span(entry, key)
    if not 0 <= start < end <= len(text):
        raise BadRowError(
            f'"{key}": expected 0 <= start < end <= {len(text)} (characters in the text), got {short(entry)}',
            out_of_range=True,
        )
    if isinstance(entry, dict) and entry.get("text") not in (None, text[start:end]):
        raise BadRowError(
            f'"{key}": expected the text at its offsets, {short(text[start:end])}, got {short(entry)};'
            " offsets count characters (not bytes or UTF-16 units)"
        )
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start == end:
        raise BadRowError(f'"{key}": expected a span with a word in it, got only white space, {short(entry)}')
    return start, end, label


def _doc(doc: Any, where: str, rows: Rows, options: ReadOptions) -> Example:
    return _spans(docbin.to_spans(doc), where, rows, options)


def _span(entry: Any, key: str) -> tuple[int, int, str]:
    if isinstance(entry, dict):
        start, end, label = entry.get("start"), entry.get("end"), entry.get("label")
    elif isinstance(entry, (list, tuple)) and len(entry) == 3:
        start, end, label = entry
    else:
        raise BadRowError(f'"{key}": expected {{"start", "end", "label"}} or [start, end, label], got {short(entry)}')
    if type(start) is not int or type(end) is not int:
        raise BadRowError(f'"{key}": expected two whole character offsets and a label, got {short(entry)}')
    return start, end, label_field(label, entry)


def _pile_ner(row: dict[str, Any], where: str, rows: Rows, options: ReadOptions) -> Example:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRowError(f'"conversations": expected a list of {{"from", "value"}}, got {short(turns)}')
    values = [text_field(turn.get("value"), '"value"') for turn in turns]
    if len(values) < 2 or len(values) % 2 or not values[0].startswith("Text:"):
        raise BadRowError(
            '"conversations": expected "Text: ...", a reply to it, then pairs of question and answer,'
            f" got {len(values)} turns starting with {short(values[0] if values else None)}"
        )
    text = values[0].removeprefix("Text:").strip()
    words = word_splitter(options.splitter, "splitter")(text)
    starts = {word.start: index for index, word in enumerate(words)}
    ends = {word.end: index for index, word in enumerate(words)}
    entities: dict[Entity, None] = {}
    types: dict[str, None] = {}
    unmatched = 0
    for question, answer in zip(values[2::2], values[3::2], strict=True):
        match = _QUESTION.fullmatch(question)
        if match is None:
            raise BadRowError(f'"conversations": expected "What describes TYPE in the text?", got {short(question)}')
        label = match.group(1).strip()
        mentions = _answer(answer)
        occurrences = [_occurrences(mention, text, starts, ends) for mention in mentions]
        matched = [(first, last, label) for spans in occurrences for first, last in spans]
        missing = sum(1 for spans in occurrences if not spans)
        entities.update(dict.fromkeys(matched))
        unmatched += missing
        # if no answer occurs in the text, the type is neither known present nor known absent
        if matched or not missing:
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
        raise BadRowError(f'"conversations": expected a JSON list of strings as answer, got {short(answer)}') from error
    if not isinstance(mentions, list) or not all(isinstance(mention, str) for mention in mentions):
        raise BadRowError(f'"conversations": expected a JSON list of strings as answer, got {short(answer)}')
    return list(dict.fromkeys(mention.strip() for mention in mentions))


def _occurrences(mention: str, text: str, starts: dict[int, int], ends: dict[int, int]) -> list[tuple[int, int]]:
    """Return (first word, last word) of each occurrence of `mention` in `text` on word boundaries.

    starts, ends: character offset -> index of the word that starts or ends there.
    """
    spans = []
    offset = text.find(mention) if mention else -1
    while offset >= 0:
        first, last = starts.get(offset), ends.get(offset + len(mention))
        if first is not None and last is not None:
            spans.append((first, last))
        offset = text.find(mention, offset + 1)
    return spans


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
        got = f"{len(tags)}" if isinstance(tags, list) else short(tags)
        raise BadRowError(f'"ner_tags": expected one tag for each of the {count} words, got {got}')
    for tag in tags:
        if not conll.is_tag(tag):
            raise BadRowError(f'"ner_tags": expected {conll.EXPECTED}, got {short(tag)}')
        text_field(tag, '"ner_tags"')
    return tags
