"""Passages: the parts of texts that are read together, tokenised and packed, a chunk of requests at a time.

A text is one passage, or several: one for each window of a text that is too long, and for each group of labels that do
not fit one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimodern.inputs.batch import LabelGroup, PackedBatch, TextTokens
from glimodern.inputs.packer import Packer

from .request import Request
from .windows import Reading

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


class ReadText(NamedTuple):
    """What is read of a text: see `compute.Result`."""

    groups: tuple[LabelGroup, ...] = ()
    words_cut: int = 0
    cut_by_labels: bool = False
    words_shortened: int = 0


class PreparedChunk:
    """A chunk, tokenised, cut into passages and packed; requests without words or labels have no passage."""

    def __init__(self, chunk: Chunk, packer: Packer, reading: Reading, batch_tokens: int) -> None:
        self.requests, first, self.error = chunk
        self.packer, self.reading = packer, reading
        self.windows: list[list[tuple[int, int]]] = [[] for _ in self.requests]
        self.texts = [ReadText() for _ in self.requests]
        nonempty = [i for i, request in enumerate(self.requests) if request.words and request.labels.names]
        whole = max((len(self.requests[i].words) for i in nonempty), default=0) if reading.reads_whole else None
        tokens = packer.tokenize([self.requests[i].words for i in nonempty], max_words=whole)
        passages: list[Passage] = []
        for i, text in zip(nonempty, tokens, strict=True):
            try:
                passages += self._passages(i, first + i, text)
            except ValueError as error:  # the results of the texts before it are still yielded
                self.requests, self.error = self.requests[:i], error
                break
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

    def _passages(self, i: int, number: int, text: TextTokens) -> Iterator[Passage]:
        """Cut request i of the chunk, the text `number` of the stream, into passages."""
        request = self.requests[i]
        groups = self.packer.label_groups(request.labels.prompts, self.reading.group_size(len(request.labels.names)))
        max_tokens = self.packer.groups_budget(groups)
        self.windows[i], parts = self.reading.windows(request, text, self.packer, max_tokens, number)
        self.texts[i] = read = self._read(text, groups, max_tokens)
        if not self.reading.reads_whole:
            self.windows[i] = [(0, text.words - read.words_cut)]
        for window, ((first, _), part) in enumerate(zip(self.windows[i], parts, strict=True)):
            for group in groups:
                yield Passage(i, window, first, part, group)

    def _read(self, text: TextTokens, groups: tuple[LabelGroup, ...], max_tokens: int | None) -> ReadText:
        """Describe what is read of a text. max_tokens: of the text, beside its prompt."""
        if max_tokens is None or len(text.ids) <= max_tokens:
            return ReadText(groups, words_cut=text.words - len(text.starts))
        if self.reading.reads_whole:
            return ReadText(groups, words_shortened=int((np.diff(text.bounds) > max_tokens).sum()))
        return ReadText(groups, text.words - text.words_within(max_tokens), self.packer.fits_alone(text))

    def pack(self, batch: Sequence[Passage]) -> PackedBatch:
        labels, prompts = [passage.group.labels for passage in batch], [passage.group.prompt for passage in batch]
        return self.packer.pack_tokens([passage.tokens for passage in batch], labels, prompts=prompts)

    def thresholds(self, batch: Sequence[Passage]) -> float | Tensor:
        """Return the threshold of a batch, or one for each of its types, fp32 [m]."""
        given = [self.requests[passage.request].threshold for passage in batch]
        if not isinstance(given[0], tuple) and all(threshold == given[0] for threshold in given):
            return given[0]
        columns: list[float] = []
        for threshold, passage in zip(given, batch, strict=True):
            first, count = passage.group.first, len(passage.group.labels)
            columns += threshold[first : first + count] if isinstance(threshold, tuple) else [threshold] * count
        return torch.tensor(columns, dtype=torch.float32, device="cpu")


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
