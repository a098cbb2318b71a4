"""Rows of Doccano's JSON lines: both exports of sequence labelling. Offsets count characters (code points).

    {"id": 1, "text": "...", "label": [[0, 3, "person"]]}
    {"id": 1, "text": "...", "entities": [{"id": 5, "label": "person", "start_offset": 0, "end_offset": 3}],
     "relations": [...]}

The first is what Doccano imports, too. Nothing in an export says whether somebody has looked at a text: a text without
entities counts as annotated, unless the export left unapproved texts out. Relations are not read.
Source: https://doccano.github.io/doccano/tutorial/
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from glimodern.display import short

from ..fields import BadRowError


def is_doccano(row: dict[str, Any]) -> bool:
    """Return whether the keys of a row with a text are Doccano's alone; "label" triples are "spans" too."""
    entities = row.get("entities")
    if isinstance(entities, list) and entities:
        return isinstance(entities[0], dict) and "start_offset" in entities[0]
    return isinstance(row.get("labels"), list) or ("relations" in row and "entities" in row)


def to_spans(row: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """Return the row in the format "spans". notes: counts what is not read. Raises BadRowError."""
    key = next((name for name in ("entities", "label", "labels") if name in row), "entities")
    entities = row.get(key)
    if not isinstance(entities, list):
        raise BadRowError(f'"{key}": expected a list of entities, [] for none, got {short(entities)}')
    if row.get("relations"):
        notes["relations, not read"] += len(row["relations"])
    spans = [
        {"start": entity.get("start_offset"), "end": entity.get("end_offset"), "label": entity.get("label")}
        if isinstance(entity, dict) and "start" not in entity
        else entity
        for entity in entities
    ]
    return {**row, "entities": spans}


def row_of(text: str, spans: list[tuple[int, int, str]]) -> dict[str, Any]:
    """Return a row as Doccano imports it. spans: (start, end, label) in characters."""
    return {"text": text, "label": [list(span) for span in spans]}
