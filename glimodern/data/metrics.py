"""Exact-match scores: a predicted entity is correct if its first word, last word and label equal a gold entity's.

The entities of a sentence form a set: a duplicate, in the gold or in the prediction, counts once. A ratio with
denominator 0 is 0, as in the public scorers; a group without gold and predicted entities therefore has F1 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glimodern.inputs.words import Entity

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Counts:
    """Number of correct, predicted and gold entities."""

    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        # 2PR / (P + R) with the common denominators cancelled
        total = self.predicted + self.gold
        return 2 * self.correct / total if total else 0.0

    def to_dict(self) -> dict[str, float | int]:
        """Return ratios and counts as a dict for JSON."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "correct": self.correct,
            "predicted": self.predicted,
            "gold": self.gold,
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """Result of `score`. All ratios are in [0, 1]."""

    micro: Counts
    per_type: Mapping[str, Counts]
    """Counts of each label in the gold or the predictions, sorted by label."""
    per_group: Mapping[str, Counts]
    """Counts of each group, in order of first appearance; empty if no groups were given."""
    sentences: int

    @property
    def macro_precision(self) -> float:
        return _mean([counts.precision for counts in self.per_type.values()])

    @property
    def macro_recall(self) -> float:
        return _mean([counts.recall for counts in self.per_type.values()])

    @property
    def macro_f1(self) -> float:
        """Mean F1 of all types, with types that were only predicted."""
        return _mean([counts.f1 for counts in self.per_type.values()])

    @property
    def group_average_f1(self) -> float | None:
        """Mean of the groups' micro F1; the "CrossNER average" if the groups are CrossNER's domains."""
        return _mean([counts.f1 for counts in self.per_group.values()]) if self.per_group else None

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as nested dicts for JSON."""
        return {
            "sentences": self.sentences,
            "micro": self.micro.to_dict(),
            "macro": {"precision": self.macro_precision, "recall": self.macro_recall, "f1": self.macro_f1},
            "group_average_f1": self.group_average_f1,
            "per_group": {group: counts.to_dict() for group, counts in self.per_group.items()},
            "per_type": {label: counts.to_dict() for label, counts in self.per_type.items()},
        }

    def table(self, title: str | None = None, *, max_types: int = 60) -> Table:
        """Return a rich table in percent: types by decreasing gold count, groups, micro and macro.

        Shows at most max_types types, and the number of the others in one row.
        """
        from rich.table import Table

        from glimodern.display import cell

        table = Table(title=None if title is None else cell(title))
        table.add_column("")
        for name in ("precision", "recall", "F1", "gold", "predicted"):
            table.add_column(name, justify="right")

        def add(name: str, counts: Counts) -> None:
            ratios = (f"{100 * value:.1f}" for value in (counts.precision, counts.recall, counts.f1))
            table.add_row(cell(name), *ratios, str(counts.gold), str(counts.predicted))

        by_gold = sorted(self.per_type.items(), key=lambda item: (-item[1].gold, item[0]))
        for label, counts in by_gold[:max_types]:
            add(label, counts)
        if len(by_gold) > max_types:
            table.add_row(f"… {len(by_gold) - max_types} more types")
        table.add_section()
        for group, counts in self.per_group.items():
            add(group, counts)
        if self.group_average_f1 is not None:
            table.add_row("average of groups", "", "", f"{100 * self.group_average_f1:.1f}")
            table.add_section()
        add("micro", self.micro)
        macro = (self.macro_precision, self.macro_recall, self.macro_f1)
        table.add_row("macro", *(f"{100 * value:.1f}" for value in macro))
        return table


def score(
    gold: Sequence[Sequence[Entity]],
    predicted: Sequence[Sequence[Entity]],
    *,
    groups: Sequence[str | None] | None = None,
) -> Scores:
    """Score predictions against gold entities (first word, last word, label).

    gold, predicted: one sequence of entities per sentence, in the same order. Labels are compared exactly.
    groups: one name per sentence, such as its domain; a sentence with group None counts in all scores but the groups'.
    Raises ValueError if the lengths differ or an entity does not have three parts.
    """
    if len(gold) != len(predicted):
        raise ValueError(
            f"predicted: expected one list for each of the {len(gold)} gold sentences, got {len(predicted)}; "
            "a sentence without entities is an empty list"
        )
    if groups is not None and len(groups) != len(gold):
        raise ValueError(f"groups: expected one name for each of the {len(gold)} sentences, got {len(groups)}")

    by_type = _Tally()
    by_group = _Tally()
    for sentence, (gold_list, predicted_list) in enumerate(zip(gold, predicted, strict=True)):
        gold_set = _entity_set(gold_list, "gold", sentence)
        predicted_set = _entity_set(predicted_list, "predicted", sentence)
        correct_set = gold_set & predicted_set
        by_type.correct.update(label for _, _, label in correct_set)
        by_type.predicted.update(label for _, _, label in predicted_set)
        by_type.gold.update(label for _, _, label in gold_set)
        group = groups[sentence] if groups is not None else None
        if group is not None:
            by_group.correct[group] += len(correct_set)
            by_group.predicted[group] += len(predicted_set)
            by_group.gold[group] += len(gold_set)

    micro = Counts(by_type.correct.total(), by_type.predicted.total(), by_type.gold.total())
    labels = sorted(by_type.gold.keys() | by_type.predicted.keys())
    return Scores(
        micro=micro,
        per_type={label: by_type.counts(label) for label in labels},
        per_group={group: by_group.counts(group) for group in by_group.gold},
        sentences=len(gold),
    )


class _Tally:
    """Counters of correct, predicted and gold entities by name."""

    def __init__(self) -> None:
        self.correct: Counter[str] = Counter()
        self.predicted: Counter[str] = Counter()
        self.gold: Counter[str] = Counter()

    def counts(self, name: str) -> Counts:
        return Counts(self.correct[name], self.predicted[name], self.gold[name])


def _entity_set(entities: Sequence[Entity], argument: str, sentence: int) -> set[Entity]:
    for entity in entities:
        if len(entity) != 3:
            raise ValueError(
                f"{argument}[{sentence}]: expected entities (first word, last word, label), got {entity!r}"
            )
    return {(start, end, label) for start, end, label in entities}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
