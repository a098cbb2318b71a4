"""Counts of what data sets hold: lengths of sentences, and how much of an evaluation set occurs in training.

Time and memory are linear in words and entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..example import Dataset, Example

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def parts(dataset: Dataset) -> list[tuple[str | None, list[Example]]]:
    """Return (None, all examples), followed by (group, its examples) for each group if there are at least two."""
    groups: dict[str, list[Example]] = {}
    for example in dataset:
        if example.group is not None:
            groups.setdefault(example.group, []).append(example)
    return [(None, dataset.examples), *(sorted(groups.items()) if len(groups) > 1 else ())]


def surface(example: Example, start: int, end: int) -> str:
    """Return the text of the words `start` to `end` (inclusive) without white space.

    Without it, a text is the same however its corpus splits words: "TGF - beta" and "TGF-beta" are equal. Raises
    ValueError for a span outside the words.
    """
    if not 0 <= start <= end < len(example.words):
        raise ValueError(
            f"entities: expected 0 <= first word <= last word < {len(example.words)}, got {start} and {end} in "
            f"{example.id or 'an example'}; correct the entity"
        )
    return "".join("".join(example.words[start : end + 1]).split())


def fold_label(label: str) -> str:
    """Return a label without outer white space, case-folded."""
    return label.strip().casefold()


class TrainingVocabulary:
    """Entity texts and labels of training data, as written and case-folded.

    labels: {label: number of its entities}. Raises ValueError if no example has an entity.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.texts: set[str] = set()
        self.labels: Counter[str] = Counter()
        for dataset in datasets:
            for example in dataset:
                for start, end, label in example.entities:
                    self.texts.add(surface(example, start, end))
                    self.labels[label] += 1
        if not self.labels:
            names = ", ".join(dataset.name for dataset in datasets)
            raise ValueError(f"train: expected gold entities, got none in {names}; name annotated data")
        self.folded_texts = {text.casefold() for text in self.texts}
        self.folded_labels = {fold_label(label) for label in self.labels}


def length_counts(examples: Iterable[Example]) -> dict[str, Any]:
    """Count the words of the sentences.

    The quantile at q is the smallest length that at least the fraction q of the sentences do not exceed. Sentences
    without a word are counted as `empty` and enter nothing else.
    """
    lengths = Counter(len(example.words) for example in examples)
    empty = lengths.pop(0, 0)
    total, words = lengths.total(), sum(length * count for length, count in lengths.items())
    counts: dict[str, Any] = {"sentences": total + empty, "empty": empty, "words": words}
    if total:
        ordered = sorted(lengths.items())
        quantiles = {name: _quantile(ordered, share * total) for name, share in QUANTILES.items()}
        counts |= {"mean": round(words / total, 6), "least": ordered[0][0], **quantiles, "most": ordered[-1][0]}
    return counts


def _quantile(ordered: Sequence[tuple[int, int]], rank: float) -> int:
    """Return the first length at which the running count reaches `rank`; ordered: (length, count), sorted."""
    seen = 0
    for length, count in ordered:
        seen += count
        if seen >= rank:
            return length
    return ordered[-1][0]


def entity_counts(examples: Iterable[Example]) -> dict[str, int]:
    """Count entities, distinct entity texts, and distinct labels of entities."""
    texts: set[str] = set()
    labels: Counter[str] = Counter()
    for example in examples:
        for start, end, label in example.entities:
            texts.add(surface(example, start, end))
            labels[label] += 1
    return {"entities": labels.total(), "entity_texts": len(texts), "types": len(labels)}


def overlap(examples: Iterable[Example], training: TrainingVocabulary) -> dict[str, Any]:
    """Count entities, distinct entity texts and types of an evaluation set, and those that occur in training.

    An entity occurs in training if an entity there has its text (`surface`), of whatever type. A type occurs if an
    entity there has it as its label. `exact` compares what is written, `folded` compares case-folded.
    """
    texts: Counter[str] = Counter()
    labels: set[str] = set()
    for example in examples:
        for start, end, label in example.entities:
            texts[surface(example, start, end)] += 1
            labels.add(label)
    exact = {text for text in texts if text in training.texts}
    folded = {text for text in texts if text.casefold() in training.folded_texts}
    entities = (sum(texts[text] for text in found) for found in (exact, folded))
    types = (
        sum(label in training.labels for label in labels),
        sum(fold_label(label) in training.folded_labels for label in labels),
    )
    return {
        "entities": _shares(texts.total(), *entities),
        "entity_texts": _shares(len(texts), len(exact), len(folded)),
        "types": _shares(len(labels), *types),
        "labels": sorted(labels),
    }


def _shares(total: int, exact: int, folded: int) -> dict[str, int | float | None]:
    """Return the counts and their shares of `total`; a share of nothing is None."""
    shares = {
        name: round(count / total, 6) if total else None for name, count in (("exact", exact), ("folded", folded))
    }
    return {
        "total": total,
        "exact": exact,
        "folded": folded,
        "share_exact": shares["exact"],
        "share_folded": shares["folded"],
    }


def mean_familiarity(labels: Sequence[str], familiarity: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean familiarity of distinct labels; None without a label."""
    values = [familiarity[label]["familiarity"] for label in labels]
    return round(sum(values) / len(values), 6) if values else None
