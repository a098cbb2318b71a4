"""Annotated texts (`Example`) and named lists of them (`Dataset`), which all readers return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from glimodern.inputs.words import Entity


@dataclass(frozen=True, slots=True)
class Example:
    """A text split into words, with its gold entities.

    words:    the words, in order; may be empty.
    entities: (first word, last word, label), both indices inclusive; in the file's order, duplicates and overlaps kept.
    id:       its source, "file:line" (or "file[row]" in a JSON array).
    text, offsets: the source string and each word's (start, end) in it, in characters, end exclusive; both or neither.
    types:    the entity types to find in this text; None: the types of the data set.
    group:    name under which results are reported separately, such as a domain.
    """

    words: list[str]
    entities: list[Entity]
    id: str = ""
    text: str | None = None
    offsets: list[tuple[int, int]] | None = None
    types: tuple[str, ...] | None = None
    group: str | None = None


@dataclass(slots=True)
class Dataset:
    """A named list of examples.

    types:   all entity types, sorted: the labels of all entities and all `Example.types`; computed if not given.
    skipped: number of bad rows skipped (`skip_bad_rows`); `skipped_out_of_range` of them had word or character indices
             outside their text.
    unmatched: number of answers in Pile-NER conversations that do not occur in their text.
    left_out: rows that hold no gold annotation, {reason: number}. notes: what else of the source was not read, or was
    converted, {what: number}.
    """

    name: str
    examples: list[Example]
    types: list[str] = field(default_factory=list)
    skipped: int = 0
    skipped_out_of_range: int = 0
    unmatched: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.types:
            self.types = entity_types(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def entity_types(examples: list[Example]) -> list[str]:
    """Return the sorted types that occur as a label or in `Example.types`."""
    types: set[str] = set()
    for example in examples:
        types.update(label for _, _, label in example.entities)
        if example.types is not None:
            types.update(example.types)
    return sorted(types)
