"""Computation of a chunk's passages: candidates or given spans, one search over the texts, and the results.

If a batch does not fit the memory, it is split in halves. A text that fails, fails alone: the results of all requests
before it are yielded first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimodern.inputs.batch import PackedBatch
from glimodern.ops import SpanEntities

from .decode import DecodedEntity, TextSpans, decode_texts, text_spans
from .passages import Passage, PreparedChunk
from .request import Request, Search
from .windows import IntArray, owners

T = TypeVar("T")
FloatArray = npt.NDArray[np.float32]

ScoredEntity = tuple[int, int, str, float]
"""First word, last word (inclusive), label, score."""

_OUT_OF_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class TextDoesNotFitError(RuntimeError):
    """A text that does not fit the memory alone."""


class SpanScores(NamedTuple):
    """Scores of given spans of a batch.

    probabilities: of each text, fp32 [its spans, its types]. vectors: fp32 [spans, d], or None.
    """

    probabilities: list[FloatArray]
    vectors: FloatArray | None


class SpanModel(NamedTuple):
    """What a model computes of a packed batch on the CPU.

    candidates(batch, threshold): the spans with a probability above the threshold, one for all types, or one per type,
    fp32 [m].
    score_spans(batch, spans, vectors): the scores of given spans, and their vectors if asked for. spans: of each text,
    int64 [its spans, 2], rows (first word in the text, width - 1).
    """

    candidates: Callable[[PackedBatch, float | Tensor], SpanEntities]
    score_spans: Callable[[PackedBatch, Sequence[IntArray], bool], SpanScores]


class Result(NamedTuple):
    """Result of one request.

    entities: (start, end, label, score); start and end are word indices, both inclusive.
    words_cut: number of words cut from the text's end.
    cut_by_labels: whether the text would have been read whole without the tokens of its labels.
    windows: number of windows the text was read in; 0 for a text without words or labels.
    label_groups: number of prompts that its labels were asked in.
    words_shortened: number of words of which only the first tokens were read, because they alone exceed a window.
    spans_unread: number of given spans that lie whole in no window, and so have no score.
    probabilities: fp32 [entities, labels], of all labels of the text; None unless asked for.
    vectors: fp32 [entities, d], the spans' vectors; None unless asked for.
    """

    entities: list[ScoredEntity]
    words_cut: int = 0
    cut_by_labels: bool = False
    windows: int = 0
    label_groups: int = 0
    words_shortened: int = 0
    spans_unread: int = 0
    probabilities: FloatArray | None = None
    vectors: FloatArray | None = None


class _Run:
    """Computes batches of a chunk, and keeps the first error and the number of texts before it, `end`."""

    def __init__(self, chunk: PreparedChunk) -> None:
        self.chunk = chunk
        self.error, self.end = chunk.error, len(chunk.requests)

    def compute(
        self, wanted: Callable[[Passage], bool], function: Callable[[Sequence[Passage], PackedBatch], T]
    ) -> Iterator[tuple[Sequence[Passage], PackedBatch, T]]:
        """Yield (passages, their packed batch, function of them) for all wanted passages of texts before `end`."""
        for batch, packed in self.chunk.batches:
            part = [passage for passage in batch if passage.request < self.end and wanted(passage)]
            if not part:
                continue
            done: set[int] = set()
            try:
                whole = packed if packed is not None and len(part) == len(batch) else self.chunk.pack(part)
                for passages, computed, result in _in_parts(self.chunk, part, whole, function):
                    done.update(map(id, passages))
                    if isinstance(result, _DoesNotFit):
                        self._failed(passages[0].request, result.error)
                    else:
                        yield passages, computed, result
            except Exception as problem:
                self._failed(min(passage.request for passage in part if id(passage) not in done), problem)

    def _failed(self, request: int, error: Exception) -> None:
        if request < self.end:
            self.error, self.end = error, request


def run_chunk(chunk: PreparedChunk, model: SpanModel, search: Search) -> Iterator[tuple[Request, Result]]:
    """Yield a chunk's requests with their results, in order; raise the first error after the results before it."""
    run = _Run(chunk)
    given = {i: request.spans for i, request in enumerate(chunk.requests) if request.spans is not None}
    scored: dict[int, _TextScores] = {}
    if given:
        scored = _score_spans(
            run, model, {i: np.array(spans, dtype=np.int64).reshape(-1, 2) for i, spans in given.items()}, search
        )
        found = [_above_threshold(i, chunk.requests[i], scores) for i, scores in scored.items()]
    else:
        found = _candidates(run, model)
    words = [len(request.words) for request in chunk.requests[: run.end]]
    windows = None if given else chunk.windows
    decoded = decode_texts(found, words, windows, **search.greedy)
    if not given and (search.all_scores or search.vectors):
        spans = {i: _distinct_spans(entities) for i, entities in decoded.items()}
        scored = _score_spans(run, model, spans, search)
    for i, request in enumerate(chunk.requests[: run.end]):
        yield request, _result(chunk, i, decoded.get(i, []), scored.get(i), search)
    if run.error is not None:
        raise run.error


def _candidates(run: _Run, model: SpanModel) -> list[TextSpans]:
    """Return the candidates of all passages."""

    def candidates(passages: Sequence[Passage], packed: PackedBatch) -> TextSpans:
        spans = model.candidates(packed, run.chunk.thresholds(passages))
        places = [(p.request, p.window, p.first_word, p.group.first) for p in passages]
        return text_spans(spans, packed.cu_words, packed.cu_types, places)

    return [spans for _, _, spans in run.compute(lambda passage: True, candidates)]


class _TextScores:
    """Probabilities fp32 [spans, labels] and vectors fp32 [spans, d] of some spans of a text, int64 [spans, 2]."""

    def __init__(self, spans: IntArray, labels: int) -> None:
        self.spans = spans
        self.probabilities = np.zeros((len(spans), labels), dtype=np.float32)
        self.vectors: FloatArray | None = None
        self.unread = 0  # spans that lie whole in no window
        self.row = {(first, last): row for row, (first, last) in enumerate(spans.tolist())}


def _score_spans(run: _Run, model: SpanModel, spans: dict[int, IntArray], search: Search) -> dict[int, _TextScores]:
    """Score spans of texts, {request: int64 [spans, 2] first and last words}, each in the window that owns it."""
    chunk = run.chunk
    scored = {i: _TextScores(rows, len(chunk.requests[i].labels.names)) for i, rows in spans.items()}
    owner = {i: owners(rows[:, 0], rows[:, 1], chunk.windows[i]) for i, rows in spans.items() if chunk.windows[i]}
    for i, windows in owner.items():
        scored[i].unread = int((windows < 0).sum())
    owned = {(i, window) for i, windows in owner.items() for window in set(windows.tolist())}

    def scores(passages: Sequence[Passage], packed: PackedBatch) -> SpanScores:
        local = []
        for p in passages:
            rows = spans[p.request][owner[p.request] == p.window]
            local.append(np.stack([rows[:, 0] - p.first_word, rows[:, 1] - rows[:, 0]], axis=1))
        return model.score_spans(packed, local, search.vectors)

    for passages, _, result in run.compute(lambda p: (p.request, p.window) in owned, scores):
        first = 0
        for p, probabilities in zip(passages, result.probabilities, strict=True):
            text, rows = scored[p.request], np.flatnonzero(owner[p.request] == p.window)
            text.probabilities[rows, p.group.first : p.group.first + len(p.group.labels)] = probabilities
            if result.vectors is not None and p.group.first == 0:
                if text.vectors is None:
                    text.vectors = np.zeros((len(text.spans), result.vectors.shape[1]), dtype=np.float32)
                text.vectors[rows] = result.vectors[first : first + len(rows)]
            first += len(rows)
    return scored


def _above_threshold(number: int, request: Request, scores: _TextScores) -> TextSpans:
    """Return the given spans and labels of a text with a probability above its threshold."""
    row, type_id = np.nonzero(scores.probabilities > np.asarray(request.threshold, dtype=np.float32))
    first, last = scores.spans[row].T.reshape(2, -1)
    constant = np.full(len(row), number, dtype=np.int64), np.zeros(len(row), dtype=np.int64)
    return TextSpans(*constant, first, last, type_id, scores.probabilities[row, type_id])


def _distinct_spans(entities: Sequence[DecodedEntity]) -> IntArray:
    return np.array(list(dict.fromkeys((start, end) for start, end, _, _ in entities)), dtype=np.int64).reshape(-1, 2)


def _result(
    chunk: PreparedChunk, number: int, entities: Sequence[DecodedEntity], scores: _TextScores | None, search: Search
) -> Result:
    names, text = chunk.requests[number].labels.names, chunk.texts[number]
    probabilities = vectors = None
    if search.all_scores or search.vectors:
        rows = [] if scores is None else [scores.row[start, end] for start, end, _, _ in entities]
        if search.all_scores:
            probabilities = (
                np.zeros((0, len(names)), dtype=np.float32) if scores is None else scores.probabilities[rows]
            )
            for row, (_, _, type_id, score) in enumerate(entities):
                probabilities[row, type_id] = score  # equal, but for the rounding of another order of sums
        if search.vectors and scores is not None and scores.vectors is not None:
            vectors = scores.vectors[rows]
    if search.probability is not None:
        scores_of = search.probability(np.array([score for *_, score in entities], dtype=np.float64)).tolist()
        entities = [(*entity[:3], score) for entity, score in zip(entities, scores_of, strict=True)]
        probabilities = None if probabilities is None else search.probability(probabilities)
    return Result(
        [(start, end, names[type_id], score) for start, end, type_id, score in entities],
        text.words_cut,
        text.cut_by_labels,
        len(chunk.windows[number]),
        len(text.groups),
        text.words_shortened,
        0 if scores is None else scores.unread,
        probabilities,
        vectors,
    )


class _DoesNotFit(NamedTuple):
    """The result of a passage that does not fit the memory alone."""

    error: RuntimeError


def _in_parts(
    chunk: PreparedChunk,
    batch: Sequence[Passage],
    packed: PackedBatch,
    function: Callable[[Sequence[Passage], PackedBatch], T],
) -> Iterator[tuple[Sequence[Passage], PackedBatch, T | _DoesNotFit]]:
    """Yield passages, their packed batch and the function's result; if memory runs out, split the batch and go on."""
    try:
        result: T | None = function(batch, packed)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(batch) == 1:
            problem = TextDoesNotFitError(
                f"a text of {int(packed.cu_seqlens[-1])} tokens with its prompt does not fit the memory; give a "
                "smaller window, or ask for fewer labels at a time"
            )
            problem.__cause__ = error.with_traceback(None)  # its frames keep the batch's tensors alive
            yield batch, packed, _DoesNotFit(problem)
            return
        result = None
    if result is not None:
        yield batch, packed, result
        return
    # outside the except clause, because the error's frames keep the batch's tensors alive
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # cuBLAS and Triton allocate from the driver, not from PyTorch's cache
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _in_parts(chunk, part, chunk.pack(part), function)


def _out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means out of memory.

    PyTorch's GPU allocator raises its own class; its CPU allocator, the driver, cuBLAS and cuDNN differ in the message.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
