"""Rows of Prodigy's JSON lines: `db-out` of ner.manual, ner.correct and spans.manual. Offsets count characters.

    {"text": "...", "tokens": [{"text", "start", "end", "id", "ws"}, ...],
     "spans": [{"start", "end", "label", "token_start", "token_end"}, ...], "answer": "accept"}

token_end is inclusive. A row without an answer counts as accepted. Rejected and ignored rows are left out, and so are
the yes-or-no questions of ner.teach (view "ner"): they say of one entity only whether it is right.
Source: https://prodi.gy/docs/api-interfaces#ner_manual
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from glimodern.display import short
from glimodern.inputs.words import Word

from ..fields import BadRowError, LeftOutError

ANSWERS = ("accept", "reject", "ignore")
_BINARY_VIEW = "ner"


def is_prodigy(row: dict[str, Any]) -> bool:
    """Return whether the keys of a row with a text are Prodigy's."""
    return "_task_hash" in row or "_input_hash" in row or ("spans" in row and row.get("answer") in ANSWERS)


def to_spans(row: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """Return the row in the format "spans". notes: counts what is not read. Raises BadRowError, LeftOutError."""
    answer = row.get("answer", "accept")
    if answer not in ANSWERS:
        raise BadRowError(f'"answer": expected one of {", ".join(ANSWERS)}, got {short(answer)}')
    if answer != "accept":
        raise LeftOutError(f"answered {answer}")
    if row.get("_view_id") == _BINARY_VIEW:
        raise LeftOutError("yes-or-no questions about single entities")
    if row.get("relations"):
        notes["relations, not read"] += len(row["relations"])
    spans = row.get("spans")
    return {**row, "entities": [] if spans is None else spans}


def row_of(text: str, words: Sequence[Word], spans: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """Return an accepted row. words: tokens; spans begin and end at their edges. spans: (start, end, label)."""
    starts = {word.start: index for index, word in enumerate(words)}
    ends = {word.end: index for index, word in enumerate(words)}
    tokens = [
        {
            "text": word.text,
            "start": word.start,
            "end": word.end,
            "id": index,
            "ws": text[word.end : word.end + 1].isspace(),
        }
        for index, word in enumerate(words)
    ]
    marked = [
        {"start": start, "end": end, "token_start": starts[start], "token_end": ends[end], "label": label}
        for start, end, label in spans
    ]
    return {"text": text, "tokens": tokens, "spans": marked, "answer": "accept"}
