"""What users get: entities with character offsets, and one warning for all texts that were cut."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from glimodern.inputs.packer import Packer

from .request import Request
from .stream import Answer, Result


class Entities(list[dict[str, Any]]):
    """The entities of one text, dicts with start, end, text, label, score (character offsets, end exclusive).

    words_cut: how many words at the text's end the model did not see, 0 for a text that was read whole.
    """

    def __init__(self, entities: Sequence[dict[str, Any]] = (), words_cut: int = 0) -> None:
        super().__init__(entities)
        self.words_cut = words_cut

    @property
    def truncated(self) -> bool:
        return self.words_cut > 0


def with_offsets(request: Request, result: Result) -> Entities:
    """The entities of a text with its characters' offsets, from those of its words."""
    entities = Entities(words_cut=result.words_cut)
    for start, end, label, score in result.entities:
        first, last = request.places[start].start, request.places[end].end
        text = request.text[first:last]
        entities.append({"start": first, "end": last, "text": text, "label": label, "score": score})
    return entities


class _Cut:
    """Counts the texts that were cut, and remembers whose labels took most."""

    def __init__(self) -> None:
        self.texts = self.too_long = self.by_labels = 0
        self.words = [0, 0]  # of too long texts, and of those that made room for labels
        self.longest: tuple[int, tuple[str, ...]] = (0, ())  # tokens and labels of a prompt

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


def warn_cut(stream: Iterator[Answer], packer: Packer, stacklevel: int) -> Iterator[Answer]:
    """The stream as it is; at its end, or before its error, warnings if any text was cut."""
    cut = _Cut()

    def warn() -> None:
        for message in cut.messages(packer):
            warnings.warn(message, stacklevel=stacklevel + 1)

    try:
        for request, result in stream:
            cut.add(request, result, packer)
            yield request, result
    except Exception:
        warn()
        raise
    warn()
