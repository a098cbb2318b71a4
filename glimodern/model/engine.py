"""Engine: the calls of many clients, answered by one thread that computes and one that reads meanwhile.

To read a call is to check its arguments, split its texts into words and tokenise them, a slice at a time, the calls
with the fewest words read first. The computing thread takes batches from a `Pool`, in which texts of all calls share
them; without a batch to compute it reads calls itself, which saves a call that comes alone a switch of threads. Both
threads start with the first call.

A batch starts at once if nothing else is on its way. It waits for more texts only while that is expected to save time:
while the next call is expected sooner than a batch of its own would cost beside its tokens.

The queue is bounded by the time that its texts are expected to take, measured on recent batches. A call beyond it is
refused (`QueueFullError`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple
from weakref import WeakSet

from typing_extensions import Unpack

from glimodern.display import short, typed
from glimodern.inference.checks import check_count, is_collection, items, size_of
from glimodern.inference.entities import Entities, ReadingReport, with_offsets
from glimodern.inference.pace import Arrivals, BatchCost
from glimodern.inference.passages import PlannedText, plan_texts
from glimodern.inference.pool import Answer, Job, Lane, Outcome, Pool
from glimodern.inference.request import TEXTS, Request
from glimodern.inference.windows import Reading, ReadingOptions

from .entity_predictor import EntityPredictor

MAX_DELAY = 30.0  # seconds
MAX_CALLS = 1024
_MAX_WAIT = 0.005  # seconds
_SLICE_WORDS = 4096
_LONGEST = 1e9  # seconds
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_LABEL = 3


class QueueFullError(RuntimeError):
    """The engine has as many texts to compute as it takes. retry_after: seconds until there is room, expected."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BatchReport(NamedTuple):
    """A computed batch: its calls, texts, passages and tokens, and the seconds that it took."""

    calls: int
    texts: int
    passages: int
    tokens: int
    seconds: float


class Answers(NamedTuple):
    """The outcomes of a call's texts, in order, and what a user should know of how they were read."""

    outcomes: list[Outcome]
    messages: list[str]

    def entities(self) -> list[Entities]:
        """Return the entities of each text; raise the error of the first text that failed."""
        return [self.entities_of(number) for number in range(len(self.outcomes))]

    @property
    def found(self) -> int:
        """Number of entities of all texts."""
        return sum(len(outcome.result.entities) for outcome in self.outcomes if isinstance(outcome, Answer))

    def entities_of(self, number: int) -> Entities:
        """Return the entities of a text, or raise its error."""
        outcome = self.outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome
        return with_offsets(*outcome)


class _Call:
    """A call in the queue. read, words: its texts read so far, and their words; tokens: expected of the other texts."""

    def __init__(
        self,
        model: EntityPredictor,
        job: Job,
        reading: Reading,
        max_words: int | None,
        read: Callable[[], Iterator[Request]],
        tokens: int,
    ) -> None:
        self.model, self.job, self.reading, self.max_words, self.tokens = model, job, reading, max_words, tokens
        self.future: Future[Answers] = Future()
        self.read = self.words = 0
        self._read = read
        self._stream: Iterator[Request] | None = None

    @property
    def texts(self) -> int:
        return len(self.job.outcomes)

    def next_plans(self) -> list[PlannedText | Exception]:
        """Read the next texts, about _SLICE_WORDS words, and return their plans, or the errors of those that fail."""
        requests = self._next_requests()
        plans: list[PlannedText | Exception] = []
        fit = (request if self._fits(request) else request._replace(words=(), offsets=()) for request in requests)
        for request, plan in zip(
            requests, plan_texts(list(fit), self.read, self.model.packer, self.reading), strict=True
        ):
            if not self._fits(request):
                number, words = self.read + len(plans), len(request.words)
                plan = ValueError(f"texts[{number}]: expected at most {self.max_words} words, got {words}; split it")
            plans.append(plan)
        left = self.texts - self.read
        self.read += len(plans)
        self.tokens = self.tokens * (left - len(plans)) // max(left, 1)
        return plans

    def _fits(self, request: Request) -> bool:
        return self.max_words is None or len(request.words) <= self.max_words

    def _next_requests(self) -> list[Request]:
        if self._stream is None:
            self._stream = self._read()
        requests, words = list[Request](), 0
        for request in self._stream:
            requests.append(request)
            words += len(request.words)
            if words >= _SLICE_WORDS:
                break
        self.words += words
        return requests


class Engine:
    """Answers calls from any thread; see the module's docstring. Not usable in a process forked after its first call.

    max_delay: seconds that the texts in the queue may be expected to take, when a call arrives. A call that finds the
    queue empty is always taken; before the first batch is measured, any call is. max_calls: most calls in the queue.
    batch_tokens: see `EntityPredictor.predict`. on_batch(report): called by the computing thread after each batch.
    """

    def __init__(
        self,
        *,
        max_delay: float = MAX_DELAY,
        max_calls: int = MAX_CALLS,
        batch_tokens: int | str = "auto",
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        if isinstance(max_delay, bool) or not isinstance(max_delay, int | float) or not 0 < max_delay < _LONGEST:
            raise ValueError(f"max_delay: expected seconds > 0 and < {_LONGEST:g}, got {short(max_delay)}")
        self.max_delay = float(max_delay)
        self.max_calls = check_count("max_calls", max_calls, "a number of calls")
        self._batch_tokens, self._on_batch = batch_tokens, on_batch
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the computing thread has something to do
        self._help = threading.Condition(self._lock)  # the reading thread has
        self._calls: list[_Call] = []  # not yet answered
        self._unread: list[_Call] = []  # not yet read to their ends, and not being read
        self._readers = 0  # threads that read a call
        self._idle = False  # whether the computing thread waits for work
        self._pool = Pool()
        self._cost, self._arrivals = BatchCost(), Arrivals()
        self._threads: dict[str, threading.Thread] = {}
        self._process = os.getpid()
        self._closed = False

    @property
    def queued_calls(self) -> int:
        """Number of calls that are not yet answered."""
        return len(self._calls)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait to be computed, expected ones for texts that are not yet read."""
        return self._pool.tokens + sum(call.tokens for call in tuple(self._calls))

    def submit(
        self,
        model: EntityPredictor,
        texts: str | Sequence[str],
        labels: Any = None,
        threshold: Any = 0.5,
        flat: bool = True,
        multi_label: bool = False,
        *,
        label_vectors: Any = None,
        top_k: int | None = None,
        scores: str = "found",
        spans: Any = None,
        vectors: bool = False,
        max_words: int | None = None,
        **reading: Unpack[ReadingOptions],
    ) -> Future[Answers]:
        """Ask for the entities of one text or several; the arguments are those of `predict`.

        max_words: most words of a text; None: any number. Cancel the future to give the call up: nothing more is
        computed for it.

        Raises QueueFullError, and TypeError or ValueError for options. The future raises the errors of the other
        arguments. A text that cannot be read, or fails while it is computed, has an exception for its outcome.
        """
        search = model._search(threshold, flat, multi_label, top_k, scores, vectors)
        how = model._reading("predict", reading)
        given = texts if isinstance(texts, str) else _listed(texts)
        count = 1 if isinstance(given, str) else len(given)

        def done(outcomes: list[Outcome]) -> None:
            self._forget(call)
            try:
                report = ReadingReport(how)
                for outcome in outcomes:
                    if isinstance(outcome, Answer):
                        report.add(*outcome, model.packer)
                answers: Answers | Exception = Answers(outcomes, list(report.messages(model.packer)))
            except Exception as error:  # every call has an answer, whatever went wrong
                answers = error
            _settle(call.future, answers)

        def read() -> Iterator[Request]:
            return model.requests(given, labels, threshold, label_vectors, spans).stream

        lane = Lane(
            model, label_vectors, model.packer, model._span_model(label_vectors),
            lambda: model._batch_tokens(self._batch_tokens),
        )  # fmt: skip
        lane.batch_tokens()  # raises for a wrong option
        job = Job(lane, search, count, done)
        call = _Call(model, job, how, max_words, read, _expected_tokens(model, given, labels, how))
        self._admit(call)
        call.future.add_done_callback(lambda future: self._give_up(call) if future.cancelled() else None)
        return call.future

    def _admit(self, call: _Call) -> None:
        if os.getpid() != self._process:  # asked first: the lock may have been taken when the process was forked
            raise RuntimeError("the engine belongs to the process that created it; create one in this process")
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed; create another one")
            self._start_threads()
            self._arrivals.add(time.monotonic())
            if self._calls:
                self._check_room(call.tokens, call.job.lane.batch_tokens())
            self._calls.append(call)
            self._unread.append(call)
            (self._work if self._idle else self._help).notify()

    def _start_threads(self) -> None:
        """Start the threads that do not run yet. Raises RuntimeError if the system has none left."""
        for name, target in (("read", self._read_meanwhile), ("compute", self._compute_batches)):
            if name not in self._threads:
                thread = threading.Thread(target=target, name=f"glimodern-{name}", daemon=True)
                thread.start()
                self._threads[name] = thread
                _close_at_exit(self)

    def check_room(self) -> None:
        """Raise QueueFullError if the queue would take no call now, however small."""
        with self._lock:
            call = next(iter(self._calls), None)
            if call is not None:
                self._check_room(0, call.job.lane.batch_tokens())

    def _check_room(self, tokens: int, batch_tokens: int) -> None:
        """Raise QueueFullError if the queue, which is not empty, has no room for a call of so many tokens."""
        queued = self.queued_tokens
        delay, own = self._cost.seconds(queued, batch_tokens), self._cost.seconds(tokens, batch_tokens)
        over = delay + own - self.max_delay
        if len(self._calls) >= self.max_calls or over > 0:
            raise QueueFullError(
                f"queue: expected room for another call, got {len(self._calls)} calls of about {queued} tokens, "
                f"{delay:.1f} s of work; try again later",
                min(max(over, delay / len(self._calls)), self.max_delay),
            )

    def _forget(self, call: _Call) -> None:
        """Take a call out of the queue."""
        with self._lock:
            for queue in (self._calls, self._unread):
                if call in queue:
                    queue.remove(call)
            if self._closed and not self._calls:
                self._work.notify()
                self._help.notify()

    def _give_up(self, call: _Call) -> None:
        self._pool.cancel(call.job)
        self._forget(call)

    def _fail(self, call: _Call, error: Exception) -> None:
        self._give_up(call)
        _settle(call.future, error)

    # reading

    def _read_meanwhile(self) -> None:
        """Read calls while the other thread computes."""
        while True:
            with self._lock:
                while not self._unread or self._idle:
                    if self._closed and not self._calls:
                        return
                    self._help.wait()
                call = self._next_unread()
            self._read(call)
            del call  # its texts are freed while this thread waits

    def _next_unread(self) -> _Call:
        """Take the call to read next out of the queue of unread ones."""
        call = min(self._unread, key=lambda call: call.words)
        self._unread.remove(call)
        self._readers += 1
        return call

    def _read(self, call: _Call) -> None:
        """Read a slice of a call's texts, and put their passages into the pool."""
        try:
            first = call.read
            self._pool.add(call.job, first, call.next_plans())
            if not call.texts:
                call.job.done([])
        except Exception as error:
            self._fail(call, error)
        with self._lock:
            self._readers -= 1
            if call.read < call.texts and call in self._calls:
                self._unread.append(call)
            self._work.notify()

    # computing

    def _compute_batches(self) -> None:
        while True:
            with self._lock:
                while not self._pool.tokens and not self._unread:
                    if self._closed and not self._calls:
                        return
                    self._idle = True
                    self._work.wait()
                    self._idle = False
                # a call may be given up meanwhile, which empties the pool without this lock
                call = self._next_unread() if self._unread and not self._pool.tokens else None
                if self._unread:
                    self._help.notify()
            if call is not None:
                self._read(call)
                del call
                continue
            try:
                self._compute_batch()
            except Exception as error:  # every call has an answer, whatever went wrong
                with self._lock:
                    calls = list(self._calls)
                for failed in calls:
                    self._fail(failed, error)

    def _compute_batch(self) -> None:
        self._wait_for_more()
        batch = self._pool.take()
        if not batch:
            return
        tokens, texts = sum(part.tokens for part in batch), {part.text for part in batch}
        started = time.monotonic()
        self._pool.run(batch)
        seconds = time.monotonic() - started
        self._cost.add(tokens, seconds)
        if self._on_batch is not None:
            calls = len({text.job for text in texts})
            self._on_batch(BatchReport(calls, len(texts), len(batch), tokens, seconds))

    def _wait_for_more(self) -> None:
        """Wait while more texts are expected soon enough to make it worth to delay the next batch."""
        worth = min(self._cost.fixed, _MAX_WAIT)
        until = time.monotonic() + worth
        with self._lock:
            limit = next((call.job.lane.batch_tokens() for call in self._calls), 0)
            while self._pool.tokens < limit and (self._unread or self._readers or self._arrivals.gap < worth):
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._work.wait(left)

    def close(self, *, drain: bool = True) -> None:
        """Take no more calls, and end the threads. drain: answer the calls in the queue first; else cancel them."""
        if os.getpid() != self._process:
            return  # the threads are the parent's
        with self._lock:
            self._closed = True
            calls = [] if drain else list(self._calls)
            self._work.notify()
            self._help.notify()
        for call in calls:
            call.future.cancel()
        for thread in self._threads.values():
            thread.join()


_open: WeakSet[Engine] = WeakSet()


def _close_at_exit(engine: Engine) -> None:
    """End an engine's threads before the interpreter is torn down, if nobody has closed it."""
    if not _open:
        atexit.unregister(_close_open)
        atexit.register(_close_open)
    _open.add(engine)


def _close_open() -> None:
    for engine in list(_open):
        engine.close(drain=False)


def _settle(future: Future[Answers], outcome: Answers | Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # the call was given up meanwhile
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _listed(texts: Any) -> list[Any]:
    """Return the texts as a list of the call's own; TypeError for a stream, which might not end."""
    values = items(texts, "texts", TEXTS)
    if size_of(texts) is None:
        raise TypeError(f"texts: expected {TEXTS} with a length, got {typed(texts)}; give a list")
    return list(values)


def _expected_tokens(model: EntityPredictor, texts: str | Sequence[Any], labels: Any, reading: Reading) -> int:
    """Estimate the tokens of a call from its characters and labels, without checking either."""
    given = [texts] if isinstance(texts, str) else texts
    characters = sum(len(text) for text in given if isinstance(text, str))
    asked = len(labels) if isinstance(labels, Sized) else 0
    if isinstance(labels, list | tuple) and labels and is_collection(labels[0]):
        asked = len(labels[0])  # one label set per text
    passes = -(-asked // reading.group_size(asked)) if model.packer.asks_in_text else 1
    return characters * passes // _CHARACTERS_PER_TOKEN + len(given) * asked * _TOKENS_PER_LABEL
