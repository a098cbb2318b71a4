"""Validation report of a data set: counts of its content, and of valid content that lowers accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .example import Dataset

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class CutCounts:
    """What is lost of a data set because its texts are long, for one way to read them.

    texts:        texts that are not read whole.
    words_beyond: words lost beyond the maximum number of words.
    words_tokens: other words lost because the encoder takes no more tokens beside the prompt.
    entities:     gold entities lost, without those wider than max_width.
    """

    texts: int = 0
    words_beyond: int = 0
    words_tokens: int = 0
    entities: int = 0


@dataclass(frozen=True)
class Cut:
    """What a model's limits on the length of a text cost a data set.

    max_words, max_tokens: the limits, the prompt's tokens included; None: no limit.
    if_cut:       each text is read once and cut at its end.
    with_windows: each text is read in overlapping windows. Then nothing is lost but what exceeds a window by itself.
    long_texts:   which of the two is done, "cut" or "windows".
    """

    max_words: int
    max_tokens: int | None
    if_cut: CutCounts
    with_windows: CutCounts
    long_texts: str


@dataclass(frozen=True)
class ValidationReport:
    """Counts of one data set, for a model that finds entities of at most `max_width` words; None: of any number.

    entities, types:       gold entities, and distinct entity types as written (labels and `Example.types`).
    wider_than_max_width:  entities of more than max_width words, which the model cannot find.
    overlapping:           distinct spans that share a word with another span of their sentence, nested ones included.
    duplicate:             entities equal in span and type to an earlier one of their sentence.
    conflicting:           spans with two or more types.
    out_of_range:          entities (or skipped rows) with an index outside their sentence.
    unasked:               entities whose type is not among their sentence's own `types`.
    empty_sentences:       sentences without a word.
    zero_entity_sentences: sentences without an entity, empty ones included.
    blank_words:           words that are empty or only white space.
    case_variants:         groups of types that are equal up to case and outer white space.
    skipped:               bad rows skipped.
    unmatched:             Pile-NER answers that do not occur in their text.
    cut:                   what is lost of long texts; None: not counted.
    """

    name: str
    max_width: int | None
    sentences: int
    words: int
    entities: int
    types: int
    wider_than_max_width: int
    overlapping: int
    duplicate: int
    conflicting: int
    out_of_range: int
    unasked: int
    empty_sentences: int
    zero_entity_sentences: int
    blank_words: int
    case_variants: tuple[tuple[str, ...], ...]
    skipped: int
    unmatched: int
    cut: Cut | None = None

    @property
    def share_lost(self) -> float:
        """Fraction of the gold entities, in [0, 1], that are wider than max_width; 0 without entities."""
        return self.wider_than_max_width / self.entities if self.entities else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all counts and `share_lost` as a dict for JSON; it is flat but for `cut`."""
        counts = asdict(self)
        counts["case_variants"] = [list(group) for group in self.case_variants]
        counts["share_lost"] = self.share_lost
        return counts

    def table(self) -> Table:
        """Return a rich table of counts and their meaning; nonzero counts that lower accuracy are yellow."""
        from rich.table import Table

        from glimodern.display import cell

        cut = self.cut
        both = cut is not None and CutCounts() != cut.if_cut
        other = "" if cut is None else "if cut" if cut.long_texts == "windows" else "with windows"
        columns = ("what", "count", *([other] if both else []), "meaning")
        table = Table(*columns, title=cell(f"data set {self.name}"))
        for column in table.columns[1:-1]:
            column.justify = "right"

        def add(what: str, count: int, meaning: str = "", otherwise: int | None = None) -> None:
            """Add a row, yellow if it has a meaning. otherwise: the count if long texts were read the other way."""
            counts = [f"{count:,}", *(["" if otherwise is None else f"{otherwise:,}"] if both else [])]
            style = "yellow" if meaning and count else None
            table.add_row(what, *counts, cell(meaning if count else ""), style=style)

        for what, count in (
            ("sentences", self.sentences),
            ("words", self.words),
            ("entities", self.entities),
            ("types", self.types),
            ("sentences without an entity", self.zero_entity_sentences),
        ):
            add(what, count)
        if cut is not None:
            now, later = cut.if_cut, cut.with_windows
            if cut.long_texts == "windows":
                now, later = later, now
            add("sentences cut", now.texts, "longer than the model reads", later.texts)
            add(f"words beyond {cut.max_words}", now.words_beyond, "cut: max_len", later.words_beyond)
            if cut.max_tokens is not None:
                what, meaning = f"words beyond {cut.max_tokens} tokens", "cut: the encoder's limit, prompt included"
                add(what, now.words_tokens, meaning, later.words_tokens)
            add("entities cut", now.entities, "cannot be found: beyond what is read", later.entities)
        variants = "; ".join(" / ".join(map(repr, group)) for group in self.case_variants[:3])
        wider, meaning = self.wider_than_max_width, f"cannot be found: {self.share_lost:.2%} of gold lost"
        if self.max_width is not None:
            add(f"wider than {self.max_width} words", wider, meaning, wider)
        for what, count, meaning in (
            ("overlapping", self.overlapping, "spans that share a word; flat decoding keeps one of them"),
            ("duplicate", self.duplicate, "same span and type twice"),
            ("conflicting", self.conflicting, "spans with two or more types"),
            ("out of range", self.out_of_range, "index outside the sentence"),
            ("type not asked for", self.unasked, "not among the sentence's own types"),
            ("empty sentences", self.empty_sentences, "no word"),
            ("blank words", self.blank_words, "only white space: a word without a token"),
            ("types equal but for case", sum(map(len, self.case_variants)), variants),
            ("bad rows left out", self.skipped, "see the log for the first of each file"),
            ("answers not in the text", self.unmatched, "Pile-NER answers without an occurrence"),
        ):
            add(what, count, meaning)
        return table


def validate(dataset: Dataset, max_width: int | None, cut: Cut | None = None) -> ValidationReport:
    """Count the content of a data set for a model with spans of at most `max_width` words (K, >= 1; None: any number).

    cut: what the model cannot read of long texts, which only a tokenizer can count (`train.limits.count_cut`).
    """
    if max_width is not None and max_width < 1:
        raise ValueError(f"max_width: expected at least 1, got {max_width}")
    wider = overlapping = duplicate = conflicting = unasked = entities = words = empty = no_entity = blank = 0
    out_of_range = dataset.skipped_out_of_range
    for example in dataset:
        count = len(example.words)
        words += count
        empty += count == 0
        no_entity += not example.entities
        blank += sum(1 for word in example.words if not word or word.isspace())
        if not example.entities:
            continue
        entities += len(example.entities)
        types = None if example.types is None else set(example.types)
        labels: dict[tuple[int, int], set[str]] = defaultdict(set)
        for start, end, label in example.entities:
            wider += max_width is not None and end - start >= max_width
            unasked += types is not None and label not in types
            if not 0 <= start <= end < count:
                out_of_range += 1
                continue
            duplicate += label in labels[start, end]
            labels[start, end].add(label)
        conflicting += sum(1 for span_labels in labels.values() if len(span_labels) > 1)
        overlapping += _overlapping(labels)
    return ValidationReport(
        name=dataset.name,
        max_width=max_width,
        sentences=len(dataset),
        words=words,
        entities=entities,
        types=len(dataset.types),
        wider_than_max_width=wider,
        overlapping=overlapping,
        duplicate=duplicate,
        conflicting=conflicting,
        out_of_range=out_of_range,
        unasked=unasked,
        empty_sentences=empty,
        zero_entity_sentences=no_entity,
        blank_words=blank,
        case_variants=_case_variants(dataset.types),
        skipped=dataset.skipped,
        unmatched=dataset.unmatched,
        cut=cut,
    )


def _overlapping(spans: Iterable[tuple[int, int]]) -> int:
    """Count the distinct inclusive spans that share a word with another one."""
    ordered = sorted(spans)
    count = 0
    reach = -1
    for index, (start, end) in enumerate(ordered):
        # spans are sorted by start: if any later span begins inside this one, the next one does
        meets_next = index + 1 < len(ordered) and ordered[index + 1][0] <= end
        count += meets_next or start <= reach
        reach = max(reach, end)
    return count


def _case_variants(types: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = defaultdict(list)
    for label in types:
        groups[label.strip().casefold()].append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
