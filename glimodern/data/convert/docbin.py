"""spaCy's binary training files (.spacy, `DocBin`). spaCy is imported when a file is read or written.

A Doc's entities are those of doc.spans["sc"], where spaCy's span categorizer has its own, or else doc.ents. Docs that
have neither were not annotated, and are left out.
Source: https://spacy.io/api/docbin
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from glimodern.inputs.words import Word, cut_words

from ..fields import LeftOutError
from ..json_rows import Row
from ..lines import open_input

SUFFIX = ".spacy"
SPANS_KEY = "sc"
DEFAULT_LANGUAGE = "xx"  # spaCy's code for any language


def _spacy() -> Any:
    try:
        import spacy.tokens
    except ImportError as error:
        raise ImportError(f"{SUFFIX}: expected the package spacy, got none; pip install 'glimodern[spacy]'") from error
    return spacy


def check_language(language: str) -> None:
    """Raise ValueError for a language that spaCy does not have, ImportError without spaCy."""
    spacy = _spacy()
    try:
        spacy.util.get_lang_class(language)
    except ImportError as error:
        raise ValueError(f"language: expected a code that spaCy has, such as 'en', got {language!r}") from error


def read_docs(path: Path) -> Iterator[Row]:
    """Yield the Docs of a file. Raises ValueError for another file, ImportError without spaCy."""
    spacy = _spacy()
    with open_input(path) as stream:
        data = stream.read()
    try:
        docs = list(spacy.tokens.DocBin().from_bytes(data).get_docs(spacy.blank(DEFAULT_LANGUAGE).vocab))
    except (zlib.error, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: expected a spaCy DocBin, got other or damaged data ({error})") from error
    return (Row(f"{path}[{index}]", doc) for index, doc in enumerate(docs))


def to_spans(doc: Any) -> dict[str, Any]:
    """Return a Doc in the format "spans". Raises LeftOutError for one without annotation."""
    if SPANS_KEY not in doc.spans and len(doc) and not doc.has_annotation("ENT_IOB"):
        raise LeftOutError("not annotated")
    spans = doc.spans[SPANS_KEY] if SPANS_KEY in doc.spans else doc.ents
    entities = [{"start": span.start_char, "end": span.end_char, "label": span.label_} for span in spans]
    return {"text": doc.text, "entities": entities}


def write_docs(
    path: Path,
    texts: Iterable[tuple[str, Sequence[tuple[int, int, str]]]],
    language: str,
    notes: Counter[str],
) -> None:
    """Write texts with their spans, (start, end, label) in characters.

    language: of spaCy's tokenizer. Its tokens are cut where an entity begins or ends inside one. Entities that overlap
    have no place in doc.ents; those of such a text are written to doc.spans["sc"]. notes: counts both.
    """
    spacy = _spacy()
    nlp = spacy.blank(language)
    docs = spacy.tokens.DocBin()
    for text, spans in texts:
        doc = _doc(nlp, text, spans, notes)
        found = [doc.char_span(start, end, label=label) for start, end, label in dict.fromkeys(spans)]
        bounds = sorted((span.start, span.end) for span in found)
        if any(end > start for (_, end), (start, _) in pairwise(bounds)):
            notes[f'texts with overlapping entities, written to doc.spans["{SPANS_KEY}"], not to doc.ents'] += 1
            doc.spans[SPANS_KEY] = found
        else:
            doc.set_ents(found, default="outside")
        docs.add(doc)
    path.write_bytes(docs.to_bytes())


def _doc(nlp: Any, text: str, spans: Sequence[tuple[int, int, str]], notes: Counter[str]) -> Any:
    """Return a Doc of a text whose tokens begin and end where the spans do."""
    nlp.max_length = max(nlp.max_length, len(text))
    bounds = [offset for start, end, _ in spans for offset in (start, end)]
    words: list[str] = []
    spaces: list[bool] = []
    for token in nlp.make_doc(text):
        parts = cut_words([Word(token.text, token.idx, token.idx + len(token))], bounds)
        words += [part.text for part in parts]
        spaces += [False] * (len(parts) - 1) + [bool(token.whitespace_)]
        notes["tokens of spaCy cut at the edges of entities"] += len(parts) - 1
    return _spacy().tokens.Doc(nlp.vocab, words=words, spaces=spaces)
