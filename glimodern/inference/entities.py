"""Entities with character offsets, and warnings of how texts were read."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from glimodern.display import short
from glimodern.inputs.words import check_text, cut_words, split_words

if TYPE_CHECKING:  # a client of the server knows entities, and no torch
    from glimodern.inputs.packer import Packer

    from .compute import Result
    from .request import Request
    from .windows import Reading


class Entities(list[dict[str, Any]]):
    """Entities of one text: dicts with start, end, text, label, score (character offsets, end exclusive).

    If asked for, with "scores" too, {label: probability}, and with "vector", fp32 [d].

    words_cut: number of words at the text's end that the model did not read; 0 for a text read whole. windows: number
    of windows that the text was read in; 0 for a text without words, or without labels.
    """

    def __init__(self, entities: Sequence[dict[str, Any]] = (), words_cut: int = 0, windows: int = 0) -> None:
        super().__init__(entities)
        self.words_cut = words_cut
        self.windows = windows

    @property
    def truncated(self) -> bool:
        """Whether the text was cut."""
        return self.words_cut > 0

    def displacy(self, text: str, style: Literal["ent", "span"] = "ent") -> dict[str, Any]:
        """Return what `spacy.displacy.render(..., style=style, manual=True)` takes. spaCy is not imported.

        text: the text that the entities were found in. style: "ent" marks entities in the running text; "span"
        underlines them, so that they may overlap. Raises TypeError, and ValueError for another text or style, and for
        "ent" where entities overlap. Source: https://spacy.io/usage/visualizers#manual-usage
        """
        check_text(text)
        for entity in self:
            found = text[entity["start"] : entity["end"]]
            if found != entity["text"]:
                raise ValueError(
                    f"text: expected the text of these entities, with {short(entity['text'])} at {entity['start']} to "
                    f"{entity['end']}, got {short(found)}; pass the string that predict read"
                )
        if style == "ent":
            bounds = sorted((entity["start"], entity["end"]) for entity in self)
            if any(end > start for (_, end), (start, _) in pairwise(bounds)):
                raise ValueError("style: expected 'span' for entities that overlap, got 'ent'; ask for style='span'")
            ents = [{name: entity[name] for name in ("start", "end", "label")} for entity in self]
            return {"text": text, "ents": ents, "title": None}
        if style != "span":
            raise ValueError(f"style: expected 'ent' or 'span', got {short(style)}")
        offsets = [offset for entity in self for offset in (entity["start"], entity["end"])]
        words = cut_words(split_words(text), offsets)
        starts, ends = [word.start for word in words], [word.end for word in words]
        spans = [
            {
                "start_token": bisect_right(ends, entity["start"]),
                "end_token": bisect_left(starts, entity["end"]),
                "label": entity["label"],
            }
            for entity in self
        ]
        return {"text": text, "spans": spans, "tokens": [word.text for word in words], "title": None}


def with_offsets(request: Request, result: Result) -> Entities:
    """Convert a text's entities from word indices to character offsets."""
    entities = Entities(words_cut=result.words_cut, windows=result.windows)
    for start, end, label, score in result.entities:
        first, last = request.offsets[start].start, request.offsets[end].end
        text = request.text[first:last]
        entities.append({"start": first, "end": last, "text": text, "label": label, "score": score})
    if result.probabilities is not None:
        for entity, row in zip(entities, result.probabilities.tolist(), strict=True):
            entity["scores"] = dict(zip(request.labels.names, row, strict=True))
    if result.vectors is not None:
        for entity, vector in zip(entities, result.vectors, strict=True):
            entity["vector"] = vector
    return entities


class ReadingReport:
    """Counts texts that were not read in one piece: those cut, by cause, with the longest prompt that cut one."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.texts = self.too_long = self.by_labels = 0
        self.words = [0, 0]  # cut from texts that are too long, and cut in favour of labels
        self.longest: tuple[int, tuple[str, ...]] = (0, ())  # number of tokens and labels of a prompt
        self.widened = 0  # spans
        self.unread = 0  # spans
        self.shortened = 0  # words of which only the first tokens were read
        self.groups: tuple[int, int] = (0, 0)  # most label groups of a text, and its labels

    def add(self, request: Request, result: Result, packer: Packer) -> None:
        self.texts += 1
        self.widened += request.spans_widened
        self.unread += result.spans_unread
        self.shortened += result.words_shortened
        self.groups = max(self.groups, (result.label_groups, len(request.labels.names)))
        if not result.words_cut:
            return
        self.words[result.cut_by_labels] += result.words_cut
        if not result.cut_by_labels:
            self.too_long += 1
            return
        self.by_labels += 1
        prompts = request.labels.prompts
        groups = packer.label_groups(prompts, self.reading.group_size(len(prompts)))
        self.longest = max(self.longest, *((len(group.prompt.ids), group.labels) for group in groups))

    def messages(self, packer: Packer) -> Iterator[str]:
        """Yield what a user should know of how the texts were read, one warning each."""
        if self.too_long:
            yield (
                f"{self.too_long} of {self.texts} texts are longer than the model takes (max_len {packer.max_words} "
                f"words, {packer.max_tokens} tokens with the prompt): {self.words[0]} words at their ends were not "
                'read; such results have .truncated set. Pass long_texts="windows" to read long texts whole.'
            )
        if self.by_labels:
            yield (
                f"labels: {self.by_labels} of {self.texts} texts were cut to make room for their labels: "
                f"{packer.prompt_summary(self.longest[1])}; {self.words[1]} words at the texts' ends were not read; "
                "such results have .truncated set. Shorten the labels, or ask for fewer at a time."
            )
        if self.shortened:
            yield (
                f"{self.shortened} words alone have more tokens than the encoder takes beside the labels "
                f"({packer.max_tokens} in all): only the first tokens of such a word were read."
            )
        if self.widened:
            yield f"spans: {self.widened} spans begin or end inside a word; they were widened to whole words."
        if self.unread:
            yield (
                f"spans: {self.unread} spans lie whole in no window, or beyond what was read of their text; they were "
                "not scored, so no result has them."
            )
        groups, labels = self.groups
        if groups > 1 and self.reading.labels_per_prompt is None:
            yield (
                f"labels: {labels} labels were asked in {groups} groups, because a prompt had at most "
                f"{self.reading.max_types} in training, and takes at most half of the encoder's tokens; pass "
                "labels_per_prompt to choose smaller groups, or larger ones if they fit."
            )


def warn_of_reading(
    stream: Iterator[tuple[Request, Result]], packer: Packer, reading: Reading, stacklevel: int
) -> Iterator[tuple[Request, Result]]:
    """Pass a stream of results through; at its end or error, warn of texts not read in one piece."""
    report = ReadingReport(reading)

    def warn() -> None:
        for message in report.messages(packer):
            warnings.warn(message, stacklevel=stacklevel + 1)

    try:
        for request, result in stream:
            report.add(request, result, packer)
            yield request, result
    except Exception:
        warn()
        raise
    warn()
