"""Entities with character offsets, and one warning for all truncated texts."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from glimodern.inputs.packer import Packer

from .request import Request
from .stream import Result


class Entities(list[dict[str, Any]]):
    """Entities of one text: dicts with start, end, text, label, score (character offsets, end exclusive).

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


def with_offsets(request: Request, result: Result) -> Entities:
    """Convert a text's entities from word indices to character offsets."""
    entities = Entities(words_cut=result.words_cut, windows=result.windows)
    for start, end, label, score in result.entities:
        first, last = request.offsets[start].start, request.offsets[end].end
        text = request.text[first:last]
        entities.append({"start": first, "end": last, "text": text, "label": label, "score": score})
    return entities


class _TruncationCounter:
    """Counts truncated texts by cause, and keeps the longest prompt that truncated one."""

    def __init__(self) -> None:
        self.texts = self.too_long = self.by_labels = 0
        self.words = [0, 0]  # cut from texts that are too long, and cut in favour of labels
        self.longest: tuple[int, tuple[str, ...]] = (0, ())  # number of tokens and labels of a prompt

    def add(self, request: Request, result: Result, packer: Packer) -> None:
        self.texts += 1
        if not result.words_cut:
            return
        self.words[result.cut_by_labels] += result.words_cut
        if not result.cut_by_labels:
            self.too_long += 1
            return
        self.by_labels += 1
        prompts = request.labels.prompts
        self.longest = max(self.longest, (len(packer.prompt(prompts).ids), prompts))

    def messages(self, packer: Packer) -> Iterator[str]:
        if self.too_long:
            yield (
                f"{self.too_long} of {self.texts} texts are longer than the model takes (max_len {packer.max_words} "
                f"words, {packer.max_tokens} tokens with the prompt): {self.words[0]} words at their ends were not "
                "read; such results have .truncated set. Split long texts before predicting."
            )
        if self.by_labels:
            yield (
                f"labels: {self.by_labels} of {self.texts} texts were cut to make room for their labels: "
                f"{packer.prompt_summary(self.longest[1])}; {self.words[1]} words at the texts' ends were not read; "
                "such results have .truncated set. Shorten the labels, or ask for fewer at a time."
            )


def warn_cut(
    stream: Iterator[tuple[Request, Result]], packer: Packer, stacklevel: int
) -> Iterator[tuple[Request, Result]]:
    """Pass a stream of results through; at its end, or before its error is raised, warn if any text was truncated."""
    counter = _TruncationCounter()

    def warn() -> None:
        for message in counter.messages(packer):
            warnings.warn(message, stacklevel=stacklevel + 1)

    try:
        for request, result in stream:
            counter.add(request, result, packer)
            yield request, result
    except Exception:
        warn()
        raise
    warn()
