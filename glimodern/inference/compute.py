"""Computation of a chunk's passages: candidates or given spans, one search over the texts, and the results.

If a batch does not fit the memory, it is split in halves. A text that fails, fails alone: the results of all requests
before it are yielded first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .decode import (
    Candidates,
    DecodedEntity,
    Select,
    TextSpans,
    Ties,
    check_numbers,
    decode_texts,
    select_by_kernel,
    text_spans,
)
from .passages import FloatArray, Passage, PlannedText, PreparedChunk
from .request import Request, Search
from .windows import IntArray, owners

T = TypeVar("T")

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
    """What a model computes of a packed batch, in the form of its packer; the results are on the CPU.

    candidates(batch, threshold): the spans with a probability above the threshold, one for all types, or one per type,
    fp32 [m].
    score_spans(batch, spans, vectors): the scores of given spans, and their vectors if asked for. spans: of each text,
    int64 [its spans, 2], rows (first word in the text, width - 1).
    ties: the order of candidates with equal scores. select: chooses the spans that are kept.
    """

    candidates: Callable[[Any, float | FloatArray], Candidates]
    score_spans: Callable[[Any, Sequence[IntArray], bool], SpanScores]
    ties: Ties
    select: Select = select_by_kernel

    def scores_of(self, batch: Any, spans: Sequence[IntArray], vectors: bool) -> SpanScores:
        """Compute `score_spans`. Raises ValueError on a NaN score, which no threshold would let through."""
        scores = self.score_spans(batch, spans, vectors)
        for probabilities in scores.probabilities:
            check_numbers(probabilities)
        return scores


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


class TextScores:
    """Scores of some spans of a text: probabilities fp32 [spans, labels], vectors fp32 [spans, d] or None.

    spans: int64 [spans, 2], first and last words. A span is scored in the window that owns it. unread: number of spans
    that lie whole in no window, and so have no score.
    """

    def __init__(self, spans: IntArray, text: PlannedText) -> None:
        self.spans = spans
        self.probabilities = np.zeros((len(spans), len(text.request.labels.names)), dtype=np.float32)
        self.vectors: FloatArray | None = None
        self.row = {(first, last): row for row, (first, last) in enumerate(spans.tolist())}
        self._owner = owners(spans[:, 0], spans[:, 1], text.windows) if text.windows else np.zeros(0, dtype=np.int64)
        self._owning = set(self._owner.tolist())
        self.unread = int((self._owner < 0).sum())

    def wants(self, passage: Passage) -> bool:
        """Whether the passage's window owns a span."""
        return passage.window in self._owning

    def spans_of(self, passage: Passage) -> IntArray:
        """Return the spans to score in a passage, as `SpanModel.score_spans` takes them."""
        rows = self.spans[self._owner == passage.window]
        return np.stack([rows[:, 0] - passage.first_word, rows[:, 1] - rows[:, 0]], axis=1)

    def add(self, passage: Passage, probabilities: FloatArray, vectors: FloatArray | None) -> None:
        """Take the scores of a passage's spans."""
        rows = np.flatnonzero(self._owner == passage.window)
        self.probabilities[rows, passage.group.first : passage.group.first + len(passage.group.labels)] = probabilities
        if vectors is not None and passage.group.first == 0:
            if self.vectors is None:
                self.vectors = np.zeros((len(self.spans), vectors.shape[1]), dtype=np.float32)
            self.vectors[rows] = vectors

    def above_threshold(self, number: int, request: Request) -> TextSpans:
        """Return the spans and labels with a probability above the text's threshold. number: the text's."""
        row, type_id = np.nonzero(self.probabilities > np.asarray(request.threshold, dtype=np.float32))
        first, last = self.spans[row].T.reshape(2, -1)
        constant = np.full(len(row), number, dtype=np.int64), np.zeros(len(row), dtype=np.int64)
        return TextSpans(*constant, first, last, type_id, self.probabilities[row, type_id])


def given_scores(text: PlannedText) -> TextScores | None:
    """Return the scores, yet to be computed, of the spans that a request gives; None if it gives none."""
    if text.request.spans is None:
        return None
    return TextScores(np.array(text.request.spans, dtype=np.int64).reshape(-1, 2), text)


def found_scores(text: PlannedText, entities: Sequence[DecodedEntity]) -> TextScores:
    """Return the scores, yet to be computed, of the spans of a text's entities."""
    spans = list(dict.fromkeys((start, end) for start, end, _, _ in entities))
    return TextScores(np.array(spans, dtype=np.int64).reshape(-1, 2), text)


class _Run:
    """Computes batches of a chunk, and keeps the first error and the number of texts before it, `end`."""

    def __init__(self, chunk: PreparedChunk[Any]) -> None:
        self.chunk = chunk
        self.error, self.end = chunk.error, len(chunk.texts)

    def compute(
        self, wanted: Callable[[Passage], bool], function: Callable[[Sequence[Passage], Any], T]
    ) -> Iterator[tuple[Sequence[Passage], Any, T]]:
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


def run_chunk(chunk: PreparedChunk[Any], model: SpanModel, search: Search) -> Iterator[tuple[Request, Result]]:
    """Yield a chunk's requests with their results, in order; raise the first error after the results before it."""
    run = _Run(chunk)
    scored = {i: scores for i, text in enumerate(chunk.texts) if (scores := given_scores(text)) is not None}
    if scored:
        _score_spans(run, model, scored, search)
        found = [scores.above_threshold(i, chunk.texts[i].request) for i, scores in scored.items()]
    else:
        found = _candidates(run, model)
    words = [len(text.request.words) for text in chunk.texts[: run.end]]
    windows = None if scored else [text.windows for text in chunk.texts]
    decoded = decode_texts(found, words, windows, ties=model.ties, select=model.select, **search.greedy)
    if not scored and (search.all_scores or search.vectors):
        scored = {i: found_scores(chunk.texts[i], entities) for i, entities in decoded.items()}
        _score_spans(run, model, scored, search)
    for i, text in enumerate(chunk.texts[: run.end]):
        yield text.request, result_of(text, decoded.get(i, []), scored.get(i), search)
    if run.error is not None:
        raise run.error


def _candidates(run: _Run, model: SpanModel) -> list[TextSpans]:
    """Return the candidates of all passages."""

    def candidates(passages: Sequence[Passage], packed: Any) -> TextSpans:
        spans = model.candidates(packed, run.chunk.thresholds(passages))
        return text_spans(spans, packed.cu_words, packed.cu_types, [place(p, p.request) for p in passages])

    return [spans for _, _, spans in run.compute(lambda passage: True, candidates)]


def place(passage: Passage, text: int) -> tuple[int, int, int, int]:
    """Return a passage's row of the `places` of `text_spans`. text: the number of its text there."""
    return text, passage.window, passage.first_word, passage.group.first


def _score_spans(run: _Run, model: SpanModel, scored: dict[int, TextScores], search: Search) -> None:
    """Score the spans of texts, {request: its spans}."""

    def scores(passages: Sequence[Passage], packed: Any) -> SpanScores:
        return model.scores_of(packed, [scored[p.request].spans_of(p) for p in passages], search.vectors)

    for passages, _, result in run.compute(lambda p: p.request in scored and scored[p.request].wants(p), scores):
        add_scores([(scored[p.request], p) for p in passages], result)


def add_scores(texts: Sequence[tuple[TextScores, Passage]], result: SpanScores) -> None:
    """Give the scores of a batch to the texts of its passages."""
    first = 0
    for (scores, passage), probabilities in zip(texts, result.probabilities, strict=True):
        end = first + len(probabilities)
        scores.add(passage, probabilities, None if result.vectors is None else result.vectors[first:end])
        first = end


def result_of(
    text: PlannedText, entities: Sequence[DecodedEntity], scores: TextScores | None, search: Search
) -> Result:
    """Return a text's result. scores: of its spans, if they were scored."""
    names = text.request.labels.names
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
        len(text.windows),
        len(text.groups),
        text.words_shortened,
        0 if scores is None else scores.unread,
        probabilities,
        vectors,
    )


class _DoesNotFit(NamedTuple):
    """The result of a passage that does not fit the memory alone."""

    error: TextDoesNotFitError


def _in_parts(
    chunk: PreparedChunk[Any],
    batch: Sequence[Passage],
    packed: Any,
    function: Callable[[Sequence[Passage], Any], T],
) -> Iterator[tuple[Sequence[Passage], Any, T | _DoesNotFit]]:
    """Yield passages, their packed batch and the function's result; if memory runs out, split the batch and go on."""
    try:
        result: T | None = function(batch, packed)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            yield batch, packed, _DoesNotFit(does_not_fit(int(packed.cu_seqlens[-1]), error))
            return
        result = None
    if result is not None:
        yield batch, packed, result
        return
    free_cached_memory()  # outside the except clause, because the error's frames keep the batch's tensors alive
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _in_parts(chunk, part, chunk.pack(part), function)


def does_not_fit(tokens: int, error: Exception) -> TextDoesNotFitError:
    """Return the error of a text of `tokens` tokens that does not fit the memory alone."""
    problem = TextDoesNotFitError(
        f"a text of {tokens} tokens with its prompt does not fit the memory; give a smaller window, or ask for fewer "
        "labels at a time"
    )
    problem.__cause__ = error.with_traceback(None)  # its frames keep the batch's tensors alive
    return problem


def free_cached_memory() -> None:
    """Return PyTorch's unused GPU memory to the driver, from which cuBLAS and Triton allocate."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory.

    PyTorch's GPU allocator raises its own class; its CPU allocator, the driver, cuBLAS and cuDNN differ in the message.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)
