"""Entity types of the demo corpus and their relations: frequent and rare types, kinds, coarse types, look-alikes."""

from __future__ import annotations

import functools

from . import training_words, words

# fine types of all splits, and fine types with a few training sentences each
FREQUENT_TYPES = tuple(label for labels in words.DOMAINS.values() for label in labels)
RARE_TYPES: dict[str, tuple[str, ...]] = {
    kind: (*words.BROAD_TYPES.get(kind, ()), *labels, *training_words.PHRASES[kind].split("|"))
    for kind, labels in training_words.NOUNS.items()
}
COARSE_OF_KIND = {"person": "person", "place": "place", "organization": "organization", "work": "creative work"}

_COARSE = {fine: coarse for coarse, labels in words.COARSE.items() for fine in labels} | {
    label: COARSE_OF_KIND[kind] for kind, labels in RARE_TYPES.items() if kind in COARSE_OF_KIND for label in labels
}
_KIND = {coarse: kind for kind, coarse in COARSE_OF_KIND.items()}

ALIKE = 0.4  # minimum `alikeness` of two types to be used as each other's negatives


def coarse_type(entity_type: str) -> str | None:
    """Return the coarse type of a fine type, or None."""
    return _COARSE.get(entity_type)


def kind_of(entity_type: str) -> str:
    """Return the kind of a fine type: "person", "place", "organization", "work", or "thing" for all others."""
    return _KIND.get(_COARSE.get(entity_type, ""), "thing")


def alikeness(label: str, other: str) -> float:
    """Return the similarity of two types' names in [0, 1]: the probability mass shared by their name shapes.

    A coarse type has the shapes of its fine types, with equal weights. Uses the shapes of dev and test names.
    """
    mine, theirs = _shape_shares(label), _shape_shares(other)
    return sum(min(share, theirs.get(shape, 0.0)) for shape, share in mine.items())


@functools.cache
def _shape_shares(label: str) -> dict[str, float]:
    fine = words.COARSE.get(label, (label,))
    shares: dict[str, float] = {}
    for entity_type in fine:
        total = sum(weight for weight, _ in words.SHAPES[entity_type]) * len(fine)
        for weight, shape in words.SHAPES[entity_type]:
            shares[shape] = shares.get(shape, 0.0) + weight / total
    return shares


@functools.cache
def look_alikes(entity_type: str) -> tuple[str, ...]:
    """Return the frequent types whose names look like those of a fine type."""
    if entity_type in FREQUENT_TYPES:
        return tuple(o for o in FREQUENT_TYPES if o != entity_type and alikeness(entity_type, o) >= ALIKE)
    kind = kind_of(entity_type)
    return tuple(other for other in FREQUENT_TYPES if kind_of(other) == kind)
