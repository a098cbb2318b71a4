"""What users give and get: texts and labels in, entities with character offsets out; between them is `inference`."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glimodern.inference import Asked, Found, pair_labels
from glimodern.labels import LabelVectors
from glimodern.text import Word, WordSplitter

Labels = Sequence[str] | Iterable[Sequence[str]]


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


def pair_texts(
    texts: Iterable[str], labels: Labels | None, label_vectors: LabelVectors | None
) -> Iterator[tuple[str, list[str]]]:
    """(text, labels asked of it): `labels`, which must be among the label vectors if there are any, else all those."""
    if label_vectors is None:
        if labels is None:
            raise TypeError("labels: wanted a sequence of strings (or label_vectors of a bi-encoder), got neither")
        return pair_labels(texts, labels)
    if labels is None:
        names = list(label_vectors.labels)
        return ((text, names) for text in texts)
    return label_vectors.checked(pair_labels(texts, labels))


def split_texts(
    pairs: Iterable[tuple[str, list[str]]], split: deque[tuple[str, list[Word]]], splitter: WordSplitter
) -> Iterator[Asked]:
    """What `inference` is asked; each text with its words is left in `split`, until its entities come."""
    for i, (text, labels) in enumerate(pairs):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}]: wanted a string, got {type(text).__name__}")
        words = splitter(text)
        split.append((text, words))
        yield Asked([word.text for word in words], labels)


def with_offsets(text: str, words: Sequence[Word], found: Found) -> Entities:
    """The entities of a text with its characters' offsets, from those of its words."""
    result = Entities(words_cut=found.words_cut)
    for start, end, label, score in found.entities:
        first, last = words[start].start, words[end].end
        result.append({"start": first, "end": last, "text": text[first:last], "label": label, "score": score})
    return result


def warn_cut(stream: Iterator[Found], max_words: int, max_tokens: int | None) -> Iterator[Found]:
    """The stream as it is; at its end one warning if any text was cut."""
    texts = texts_cut = words_cut = 0
    for found in stream:
        texts += 1
        texts_cut += found.words_cut > 0
        words_cut += found.words_cut
        yield found
    if texts_cut:
        warnings.warn(
            f"{texts_cut} of {texts} texts are longer than the model takes (max_len {max_words} words, "
            f"{max_tokens} tokens with the prompt): {words_cut} words at their ends were not read; "
            "such results have .truncated set. Split long texts before predicting.",
            stacklevel=4,
        )
