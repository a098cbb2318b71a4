"""Examples as files of our own formats, of annotation tools and of spaCy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from glimodern.files.atomic import atomic_file
from glimodern.inputs.words import Word

from ..example import Dataset, Example
from . import docbin, doccano, label_studio, prodigy

Target = Literal["spans", "gliner", "docbin", "doccano", "prodigy", "label-studio"]
TARGETS: tuple[Target, ...] = get_args(Target)
_ASKED_TYPES = ("spans", "gliner")  # formats with a place for the types that a text is asked


class Characters(NamedTuple):
    """A text, its words, and its entities as (start, end, label) in characters."""

    text: str
    words: list[Word]
    spans: list[tuple[int, int, str]]


def characters(example: Example, notes: Counter[str]) -> Characters:
    """Return an example in characters. Words without a text are joined by spaces.

    An entity without a visible character has no span; notes counts it.
    """
    if example.text is not None and example.offsets is not None:
        text, offsets = example.text, example.offsets
    else:
        text, offsets, start = " ".join(example.words), [], 0
        for word in example.words:
            offsets.append((start, start + len(word)))
            start += len(word) + 1
    spans = []
    for first, last, label in example.entities:
        start, end = offsets[first][0], offsets[last][1]
        if text[start:end].strip():
            spans.append((start, end, label))
        else:
            notes["entities without a visible character, left out"] += 1
    words = [Word(text[start:end], start, end) for start, end in offsets if start < end]
    return Characters(text, words, spans)


def write_dataset(
    dataset: Dataset, path: Path, target: Target, language: str = docbin.DEFAULT_LANGUAGE
) -> Counter[str]:
    """Write a data set to a file, whole or not at all; return counts of what the format could not hold.

    target: one of TARGETS. spans, gliner, doccano and prodigy are JSON lines, label-studio is one JSON array. language:
    of spaCy's tokenizer, for docbin. Raises ValueError and OSError, and ImportError for docbin without spaCy.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    notes: Counter[str] = Counter()
    if target == "docbin":
        docbin.check_language(language)
    with atomic_file(path) as partial:
        if target == "docbin":
            found = (characters(example, notes) for example in dataset)
            docbin.write_docs(partial, ((one.text, one.spans) for one in found), language, notes)
        else:
            rows = [_ROWS[target](example, notes) for example in dataset]
            partial.write_text(_as_json(rows, array=target == "label-studio"), encoding="utf-8")
    if target not in _ASKED_TYPES:
        notes["lists of the types that a text is asked, left out"] += sum(one.types is not None for one in dataset)
    notes["names of groups, left out"] += sum(one.group is not None for one in dataset)
    return notes


def _as_json(rows: Sequence[dict[str, Any]], array: bool) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n" if array else "".join(f"{line}\n" for line in lines)


def _spans_row(example: Example, notes: Counter[str]) -> dict[str, Any]:
    text, _, spans = characters(example, notes)
    entities = [{"start": start, "end": end, "label": label, "text": text[start:end]} for start, end, label in spans]
    return {"text": text, "entities": entities, **_types(example, "types")}


def _gliner_row(example: Example, notes: Counter[str]) -> dict[str, Any]:
    return {
        "tokenized_text": example.words,
        "ner": [list(entity) for entity in example.entities],
        **_types(example, "ner_labels"),
    }


def _types(example: Example, key: str) -> dict[str, Iterable[str]]:
    return {} if example.types is None else {key: list(example.types)}


def _doccano_row(example: Example, notes: Counter[str]) -> dict[str, Any]:
    text, _, spans = characters(example, notes)
    return doccano.row_of(text, spans)


def _prodigy_row(example: Example, notes: Counter[str]) -> dict[str, Any]:
    text, words, spans = characters(example, notes)
    return prodigy.row_of(text, words, spans)


def _label_studio_task(example: Example, notes: Counter[str]) -> dict[str, Any]:
    text, _, spans = characters(example, notes)
    return label_studio.task_of(text, spans)


_ROWS: dict[str, Callable[[Example, Counter[str]], dict[str, Any]]] = {
    "spans": _spans_row,
    "gliner": _gliner_row,
    "doccano": _doccano_row,
    "prodigy": _prodigy_row,
    "label-studio": _label_studio_task,
}
