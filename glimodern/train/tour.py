"""A tour: ten sentences from outside the demo corpus, with their entities, predicted by the demo model.

The sentences are written by hand about varied subjects and follow no template. They are not used in training or in any
F1. The demo model is tiny and is trained on generated sentences only, so it misses some of the entities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from glimodern.model.glimodern import GLiModern

# (an additional type to ask, a sentence with its entities marked up as [text](type))
_MARKED = (
    ("award", "[Marie Curie](scientist) left [Warsaw](city) at twenty-four to study physics in [Paris](city)."),
    ("person", "The night ferry from [Aberdeen](city) reaches the islands of [Shetland](place) just before breakfast."),
    (
        "singer",
        "My cousin plays the trumpet in a jazz band called [Blue Lantern](band), and he teaches at a school.",
    ),
    ("hotel", "[Lufthansa](airline) cancelled forty flights from [Munich](city) because of heavy snow."),
    ("patient", "The nurses at [Charing Cross Hospital](hospital) gave him [paracetamol](drug) and sent him home."),
    ("country", "Long before computers existed, [Ada Lovelace](mathematician) wrote a program for a machine."),
    ("database", "[Python](programming language) was named after a comedy group, not after the snake."),
    (
        "bank",
        "[Spotify](company) moved its head office, but [Daniel Ek](person) stayed in [Sweden](country).",
    ),
    ("lake", "Heavy rain swelled the [Elbe](river), and the old town of [Dresden](city) was under water for a week."),
    ("film", "She read [Moby Dick](novel) on a train through [Canada](country) and forgot to get off."),
)
_ENTITY = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<label>[^)]+)\)")


@dataclass(frozen=True, slots=True)
class TourSentence:
    """A sentence, its entities (start, end, label) with character offsets, end exclusive, and the types to ask."""

    text: str
    entities: tuple[tuple[int, int, str], ...]
    asked: tuple[str, ...]


def _read(additional_type: str, marked: str) -> TourSentence:
    text, last = "", 0
    entities = []
    for match in _ENTITY.finditer(marked):
        text += marked[last : match.start()]
        entities.append((len(text), len(text) + len(match["text"]), match["label"]))
        text += match["text"]
        last = match.end()
    asked = dict.fromkeys([*(label for _, _, label in entities), additional_type])
    return TourSentence(text + marked[last:], tuple(entities), tuple(asked))


TOUR = tuple(_read(additional_type, marked) for additional_type, marked in _MARKED)


def take_tour(model: GLiModern, threshold: float = 0.5) -> list[dict[str, Any]]:
    """Predict the ten sentences. Returns a dict per sentence with the keys text, asked, found, missed and spurious.

    found, missed and spurious are lists of dicts with the keys text and label, and score for predicted entities. An
    entity is found only if its characters and its type are exactly those of the gold.
    """
    predicted = model.predict([sentence.text for sentence in TOUR], [list(s.asked) for s in TOUR], threshold=threshold)
    rows = []
    for sentence, entities in zip(TOUR, predicted, strict=True):
        gold = set(sentence.entities)
        scores = {(entity["start"], entity["end"], entity["label"]): entity["score"] for entity in entities}

        def named(spans: Any, text: str = sentence.text) -> list[dict[str, Any]]:
            return [{"text": text[start:end], "label": label} for start, end, label in spans]

        def scored(spans: Any, text: str = sentence.text, scores: Any = scores) -> list[dict[str, Any]]:
            return [{**row, "score": scores[span]} for row, span in zip(named(spans, text), spans, strict=True)]

        rows.append(
            {
                "text": sentence.text,
                "asked": list(sentence.asked),
                "found": scored([span for span in scores if span in gold]),
                "missed": named([span for span in sentence.entities if span not in scores]),
                "spurious": scored([span for span in scores if span not in gold]),
            }
        )
    return rows


def tour_table(rows: list[dict[str, Any]]) -> Table:
    """Build a rich table of the results of `take_tour`."""
    from rich.table import Table
    from rich.text import Text

    total = {name: sum(len(row[name]) for row in rows) for name in ("found", "missed", "spurious")}
    title = "ten sentences from outside the corpus: " + ", ".join(f"{n} {name}" for name, n in total.items())
    table = Table("sentence", "found", "missed", "spurious", title=title, show_lines=True)
    for row in rows:
        cells = (", ".join(f"{e['text']} ({e['label']})" for e in row[name]) for name in total)
        table.add_row(*(Text(cell) for cell in (row["text"], *cells)))
    return table
