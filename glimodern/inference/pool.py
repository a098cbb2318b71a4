"""A pool of the texts of many calls, whose passages share packed batches.

Every text has its own labels, thresholds and decoding options, so that passages of different calls fit in one batch. A
call whose network or label vectors differ has another lane, and its own batches.

A call is served in the order of arrival until _SHORT_TOKENS of its tokens are computed. What is left of it then stands
back: all such calls have a share of the batches, 1 part in _SHORT_SHARE + 1 while others wait, and divide it evenly. A
small call therefore does not wait for a large one to end, and a large one always goes on. Shares are kept by start-time
fair queueing (Goyal, Vin and Cheng 1996, https://doi.org/10.1145/248157.248171): each has a clock that advances by the
tokens computed for it, one that becomes active starts at the clock of the one served last, and the earliest is next.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from glimodern.inputs.packer import Packer

from .compute import (
    Result,
    SpanModel,
    add_scores,
    does_not_fit,
    found_scores,
    free_cached_memory,
    given_scores,
    out_of_memory,
    place,
    result_of,
)
from .decode import DecodedEntity, TextSpans, decode_texts, text_spans
from .passages import Passage, PlannedText, batch_thresholds, pack_passages
from .request import Request, Search

_LOOK_AHEAD = 16  # calls whose next passage does not fit a batch, before the batch is closed
_SHORT_TOKENS = 8192
_SHORT_SHARE = 3


class Lane(NamedTuple):
    """What batches are computed with: passages share a batch if network and label vectors are the same objects.

    batch_tokens(): the maximum tokens of a batch now.
    """

    network: object
    label_vectors: object
    packer: Packer
    model: SpanModel
    batch_tokens: Callable[[], int]

    def shares(self, other: Lane) -> bool:
        """Return whether passages of both lanes may share a batch."""
        return self.network is other.network and self.label_vectors is other.label_vectors


class Answer(NamedTuple):
    """A text's request and its result."""

    request: Request
    result: Result


Outcome = Answer | Exception


class Job:
    """The texts of one call: their outcomes, and the passages that wait to be computed.

    done(outcomes): called once, when each text has an outcome, by the thread that computed the last one.
    """

    def __init__(self, lane: Lane, search: Search, texts: int, done: Callable[[list[Outcome]], None]) -> None:
        self.lane, self.search, self.done = lane, search, done
        self.outcomes: list[Outcome | None] = [None] * texts
        self.unanswered = texts
        self.waiting: deque[Part] = deque()
        self.served = 0  # tokens computed while it is short
        self.clock = 0.0  # among the long jobs, in tokens
        self.queued = False  # whether one of the pool's queues has the job
        self.cancelled = False

    @property
    def short(self) -> bool:
        """Whether the job is served in the order of arrival."""
        return self.served < _SHORT_TOKENS


class _Text:
    """A text in the pool: what was found of it so far, and the number of passages not yet computed."""

    def __init__(self, job: Job, number: int, plan: PlannedText) -> None:
        self.job, self.number, self.plan = job, number, plan
        self.given = given_scores(plan)
        self.scores = self.given
        self.found: list[TextSpans] = []
        self.entities: Sequence[DecodedEntity] | None = None
        self.left = 0

    def parts(self) -> list[Part]:
        """Return the passages to compute now, and count them as not yet computed."""
        packer, scores = self.job.lane.packer, self.scores
        wanted = [p for p in self.plan.passages if scores is None or scores.wants(p)]
        self.left = len(wanted)
        return [Part(self, p, packer.length(p.tokens, p.group.prompt)) for p in wanted]


class Part(NamedTuple):
    """A passage of a text in the pool, and its tokens."""

    text: _Text
    passage: Passage
    tokens: int


class _Share:
    """The clock of a share of the batches, in tokens / weight."""

    def __init__(self, weight: int) -> None:
        self.weight, self.clock = weight, 0.0


class Pool:
    """Waiting passages of jobs. Thread-safe; one thread at a time may `run` batches."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._short: deque[Job] = deque()  # in the order of arrival
        self._long: list[tuple[float, int, Job]] = []  # a heap by clock
        self._shares = {True: _Share(_SHORT_SHARE), False: _Share(1)}
        self._number = itertools.count()
        self._clock = 0.0  # of the long job served last
        self.tokens = 0  # of waiting passages

    def add(self, job: Job, first: int, plans: Sequence[PlannedText | Exception]) -> None:
        """Add texts of a job, the first of which has the number `first` in it."""
        parts: list[Part] = []
        answered: list[_Text] = []
        for number, plan in enumerate(plans, first):
            if isinstance(plan, Exception):
                self._answer(job, number, plan)
                continue
            text = _Text(job, number, plan)
            parts += text.parts()
            if not text.left:
                answered.append(text)
        with self._lock:
            self._enqueue(job, parts)
        self._finish(answered)

    def cancel(self, job: Job) -> None:
        """Forget a job: nothing more is computed for it, and `done` is not called."""
        with self._lock:
            job.cancelled = True
            self.tokens -= sum(part.tokens for part in job.waiting)
            job.waiting.clear()

    def take(self) -> list[Part]:
        """Take the passages of the next batch: at most the lane's `batch_tokens` tokens, or one passage."""
        batch: list[Part] = []
        aside: list[Job] = []
        total = 0
        with self._lock:
            limit = target = 0.0
            while len(aside) < _LOOK_AHEAD and (not batch or total < target):
                job = self._next()
                if job is None:
                    break
                part = job.waiting[0]
                if not batch:
                    limit = job.lane.batch_tokens()
                    target = self.tokens / max(-(-self.tokens // limit), 1)  # equal batches, as few as possible
                elif not _share_batch(part, batch[0]) or total + part.tokens > limit:
                    aside.append(job)
                    continue
                batch.append(job.waiting.popleft())
                total += part.tokens
                self._charge(job, part.tokens)
                self._queue(job, front=True)
            for job in reversed(aside):
                self._queue(job, front=True)
            self.tokens -= total
        return batch

    def _next(self) -> Job | None:
        """Take the job to serve next out of its queue."""
        while self._short and not self._short[0].waiting:
            self._short.popleft().queued = False
        while self._long and not self._long[0][2].waiting:
            heapq.heappop(self._long)[2].queued = False
        if self._short and (not self._long or self._shares[True].clock <= self._shares[False].clock):
            return self._short.popleft()
        return heapq.heappop(self._long)[2] if self._long else None

    def _charge(self, job: Job, tokens: int) -> None:
        """Advance the clocks of a job and of its share by the tokens that are computed for it."""
        share = self._shares[job.short]
        share.clock += tokens / share.weight
        if not job.short:
            self._clock = job.clock
            job.clock += tokens
            return
        job.served += tokens
        if not job.short:
            self._start(job)

    def _queue(self, job: Job, *, front: bool = False) -> None:
        """Put a job into its queue. front: it keeps its place among the short ones."""
        job.queued = True
        if job.short:
            (self._short.appendleft if front else self._short.append)(job)
            return
        job.clock = max(job.clock, self._clock)
        heapq.heappush(self._long, (job.clock, next(self._number), job))

    def _start(self, job: Job) -> None:
        """Let a share that was idle until this job came not claim the time when it was."""
        if not (self._short if job.short else self._long):
            share = self._shares[job.short]
            share.clock = max(share.clock, self._shares[not job.short].clock)

    def run(self, batch: Sequence[Part]) -> None:
        """Compute a batch of `take`, and answer the texts that are complete. A text that fails, fails alone."""
        texts = list(dict.fromkeys(part.text for part in batch))
        try:
            self._compute(batch)
            self._finish([text for text in texts if not text.left])
        except Exception as error:  # every call has an answer, whatever went wrong
            for text in texts:
                self._fail(text, error)

    def _enqueue(self, job: Job, parts: Sequence[Part]) -> None:
        if job.cancelled or not parts:
            return
        job.waiting.extend(parts)
        self.tokens += sum(part.tokens for part in parts)
        if not job.queued:
            self._start(job)
            self._queue(job)

    def _compute(self, batch: Sequence[Part]) -> None:
        """Compute a batch; if it fails, compute its halves, down to the passage that fails."""
        batch = [part for part in batch if part.text.left > 0 and not part.text.job.cancelled]
        if not batch:
            return
        try:
            _compute_batch(batch)
        except Exception as error:
            if len(batch) == 1:
                (part,) = batch
                fits = not isinstance(error, RuntimeError) or not out_of_memory(error)
                self._fail(part.text, error if fits else does_not_fit(part.tokens, error))
                return
        else:
            for part in batch:
                part.text.left -= 1
            return
        free_cached_memory()  # outside the except clause, because the error's frames keep the batch's tensors alive
        half = len(batch) // 2
        self._compute(batch[:half])
        self._compute(batch[half:])

    def _fail(self, text: _Text, error: Exception) -> None:
        """Answer a text with an error, and drop its other passages."""
        job = text.job
        with self._lock:
            kept = [part for part in job.waiting if part.text is not text]
            self.tokens -= sum(part.tokens for part in job.waiting) - sum(part.tokens for part in kept)
            job.waiting = deque(kept)
        text.left = -1
        self._answer(job, text.number, error)

    def _finish(self, texts: Sequence[_Text]) -> None:
        """Decode texts whose candidates are complete, and answer those whose scores are complete, or not asked for."""
        searched = [text for text in texts if text.entities is None]
        by_options: dict[tuple[Any, ...], list[_Text]] = {}
        for text in searched:
            options = (text.job.lane.model.ties, *text.job.search.greedy.values())
            by_options.setdefault(options, []).append(text)
        for same in by_options.values():
            self._decode(same)
        for text in texts:
            search = text.job.search
            if text.entities and text.scores is None and (search.all_scores or search.vectors):
                text.scores = found_scores(text.plan, text.entities)
                with self._lock:
                    self._enqueue(text.job, text.parts())
                continue
            result = result_of(text.plan, text.entities or (), text.scores, search)
            self._answer(text.job, text.number, Answer(text.plan.request, result))

    def _decode(self, texts: Sequence[_Text]) -> None:
        """Find the entities of texts with the same decoding options."""
        found: list[TextSpans] = []
        for i, text in enumerate(texts):
            spans = text.found if text.given is None else [text.given.above_threshold(i, text.plan.request)]
            found += [part._replace(request=np.full_like(part.start, i)) for part in spans]
        words = [len(text.plan.request.words) for text in texts]
        windows = [text.plan.windows if text.given is None else () for text in texts]
        job = texts[0].job
        model = job.lane.model
        decoded = decode_texts(found, words, windows, ties=model.ties, select=model.select, **job.search.greedy)
        for i, text in enumerate(texts):
            text.entities = decoded.get(i, ())

    def _answer(self, job: Job, number: int, outcome: Outcome) -> None:
        """Keep the first outcome of a text; with the last one of a job, call its `done`."""
        with self._lock:
            if job.cancelled or job.outcomes[number] is not None:
                return
            job.outcomes[number] = outcome
            job.unanswered -= 1
            complete = job.unanswered == 0
        if complete:
            job.done([outcome for outcome in job.outcomes if outcome is not None])


def _share_batch(part: Part, other: Part) -> bool:
    """Return whether two passages may share a batch: of one lane, and both searched, or both with spans to score."""
    one, two = part.text, other.text
    if (one.scores is None) != (two.scores is None) or not one.job.lane.shares(two.job.lane):
        return False
    return one.scores is None or one.job.search.vectors == two.job.search.vectors


def _compute_batch(batch: Sequence[Part]) -> None:
    """Compute passages in one packed batch, and give their texts what was found."""
    lane, search = batch[0].text.job.lane, batch[0].text.job.search
    passages = [part.passage for part in batch]
    packed = pack_passages(lane.packer, passages)
    scored = [(part.text.scores, part.passage) for part in batch if part.text.scores is not None]
    if scored:
        spans = [scores.spans_of(passage) for scores, passage in scored]
        add_scores(scored, lane.model.scores_of(packed, spans, search.vectors))
        return
    thresholds = batch_thresholds([part.text.plan.request.threshold for part in batch], passages)
    candidates = lane.model.candidates(packed, thresholds)
    places = [place(passage, i) for i, passage in enumerate(passages)]
    spans_of_all = text_spans(candidates, packed.cu_words, packed.cu_types, places)
    order = np.argsort(spans_of_all.request, kind="stable")
    bounds = np.searchsorted(spans_of_all.request[order], np.arange(len(batch) + 1))
    for part, first, end in zip(batch, bounds, bounds[1:], strict=False):
        if end > first:
            part.text.found.append(spans_of_all.rows(order[first:end]))
