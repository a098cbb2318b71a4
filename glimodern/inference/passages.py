"""Passages: the parts of texts that are read together, tokenised and packed, a chunk of requests at a time.

A text is one passage, or several: one for each window of a text that is too long, and for each group of labels that do
not fit one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple

import numpy as np
import numpy.typing as npt

from glimodern.inputs.packer import Batch, Packer
from glimodern.inputs.tokens import LabelGroup, TextTokens

from .request import Request
from .thresholds import Threshold
from .windows import Reading

FloatArray = npt.NDArray[np.float32]

_CHUNK_BATCHES = 8
_PACKED_AHEAD = 4 * _CHUNK_BATCHES


class Chunk(NamedTuple):
    """Requests in order, the number of the first one, and the error that the stream raised after them."""

    requests: list[Request]
    first: int
    error: Exception | None = None


class Passage(NamedTuple):
    """Words of a text that are read together, and the labels asked of them.

    request: index in the chunk. window: index in the text's windows. first_word: the passage's first word in the text.
    """

    request: int
    window: int
    first_word: int
    tokens: TextTokens
    group: LabelGroup


class PlannedText(NamedTuple):
    """A text and what is read of it; a text without words, or without labels, has no passages.

    windows: (first word, end word) of each. For words_cut, cut_by_labels and words_shortened see `compute.Result`.
    """

    request: Request
    windows: Sequence[tuple[int, int]] = ()
    groups: tuple[LabelGroup, ...] = ()
    passages: Sequence[Passage] = ()
    words_cut: int = 0
    cut_by_labels: bool = False
    words_shortened: int = 0


def plan_texts(
    requests: Sequence[Request], first: int, packer: Packer, reading: Reading
) -> Iterator[PlannedText | ValueError]:
    """Tokenise texts in one call, and yield each one's plan, or the error of a text that cannot be read.

    first: number of the first one, for messages.
    """
    nonempty = [request for request in requests if request.words and request.labels.names]
    whole = max((len(request.words) for request in nonempty), default=0) if reading.reads_whole else None
    tokens = iter(packer.tokenize([request.words for request in nonempty], max_words=whole))
    for i, request in enumerate(requests):
        if not (request.words and request.labels.names):
            yield PlannedText(request)
            continue
        try:
            planned: PlannedText | ValueError = _plan(i, first + i, request, next(tokens), packer, reading)
        except ValueError as error:
            planned = error
        yield planned


def _plan(i: int, number: int, request: Request, text: TextTokens, packer: Packer, reading: Reading) -> PlannedText:
    """Plan request i of a chunk, the text `number` of the stream."""
    groups = packer.label_groups(request.labels.prompts, reading.group_size(len(request.labels.names)))
    max_tokens = packer.groups_budget(groups)
    windows, parts = reading.windows(request, text, packer, max_tokens, number)
    passages = [
        Passage(i, window, first, part, group)
        for window, ((first, _), part) in enumerate(zip(windows, parts, strict=True))
        for group in groups
    ]
    planned = PlannedText(request, windows, groups, passages)
    fits = max_tokens is None or len(text.ids) <= max_tokens
    if reading.reads_whole:
        shortened = 0 if fits else int((np.diff(text.bounds) > max_tokens).sum())
        return planned._replace(words_shortened=shortened)
    read = len(text.starts) if fits or max_tokens is None else text.words_within(max_tokens)
    by_labels = not fits and packer.fits_alone(text)
    return planned._replace(windows=[(0, read)], words_cut=text.words - read, cut_by_labels=by_labels)


def pack_passages(packer: Packer[Batch], batch: Sequence[Passage]) -> Batch:
    labels, prompts = [passage.group.labels for passage in batch], [passage.group.prompt for passage in batch]
    return packer.pack_tokens([passage.tokens for passage in batch], labels, prompts=prompts)


def batch_thresholds(given: Sequence[Threshold], batch: Sequence[Passage]) -> float | FloatArray:
    """Return the threshold of a batch, or one for each of its types, fp32 [m]. given: of the text of each passage."""
    if not isinstance(given[0], tuple) and all(threshold == given[0] for threshold in given):
        return given[0]
    columns: list[float] = []
    for threshold, passage in zip(given, batch, strict=True):
        first, count = passage.group.first, len(passage.group.labels)
        columns += threshold[first : first + count] if isinstance(threshold, tuple) else [threshold] * count
    return np.array(columns, dtype=np.float32)


class PreparedChunk(Generic[Batch]):
    """A chunk, tokenised, cut into passages and packed. error: of the first text that cannot be read, or the stream."""

    def __init__(self, chunk: Chunk, packer: Packer[Batch], reading: Reading, batch_tokens: int) -> None:
        self.packer, self.error = packer, chunk.error
        self.texts: list[PlannedText] = []
        for planned in plan_texts(chunk.requests, chunk.first, packer, reading):
            if isinstance(planned, ValueError):  # the results of the texts before it are still yielded
                self.error = planned
                break
            self.texts.append(planned)
        passages = [passage for text in self.texts for passage in text.passages]
        sizes = [packer.length(passage.tokens, passage.group.prompt) for passage in passages]
        mean_size = sum(sizes) / max(-(-sum(sizes) // batch_tokens), 1)  # for the smallest possible number of batches
        batches: list[list[Passage]] = []
        total = 0
        for n in sorted(range(len(passages)), key=lambda n: -sizes[n]):  # stable sort, for reproducible batches
            if not batches or total >= mean_size or total + sizes[n] > batch_tokens:
                batches.append([])
                total = 0
            batches[-1].append(passages[n])
            total += sizes[n]
        # those of one long text with many labels may be thousands: later ones are packed when they are computed
        self.batches = [(batch, self.pack(batch) if n < _PACKED_AHEAD else None) for n, batch in enumerate(batches)]

    def pack(self, batch: Sequence[Passage]) -> Batch:
        return pack_passages(self.packer, batch)

    def thresholds(self, batch: Sequence[Passage]) -> float | FloatArray:
        """Return the threshold of a batch, or one for each of its types, fp32 [m]."""
        return batch_thresholds([self.texts[passage.request].request.threshold for passage in batch], batch)


def cut_stream(requests: Iterable[Request], batch_tokens: int, packer: Packer, reading: Reading) -> Iterator[Chunk]:
    """Cut a stream into chunks of about _CHUNK_BATCHES batches; token numbers are estimated from words and labels."""
    stream, chunk, first, budget = iter(requests), list[Request](), 0, _CHUNK_BATCHES * batch_tokens
    while True:
        try:
            request = next(stream)
        except StopIteration:
            break
        except Exception as error:
            yield Chunk(chunk, first, error)
            return
        chunk.append(request)
        words, labels = len(request.words), len(request.labels.names)
        words = words if reading.reads_whole else min(words, packer.max_words)
        if packer.asks_in_text:
            words = words * -(-labels // reading.group_size(labels)) + 2 * labels
        budget -= words + 1
        if budget <= 0:
            yield Chunk(chunk, first)
            chunk, first, budget = [], first + len(chunk), _CHUNK_BATCHES * batch_tokens
    if chunk:
        yield Chunk(chunk, first)
