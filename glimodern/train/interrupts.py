"""Ctrl-C and SIGTERM as a run wants them: the step at hand ends first, and what was done can be kept."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SAME = 1.0  # seconds: a launcher passes on the signal that a terminal has sent to every process already


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a run. The message says where it stands; exit_code is 128 + the signal's number."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class Interrupts:
    """Inside this context SIGINT and SIGTERM raise Stopped, and inside `held` only once the block has ended.

    received: the signal's number, 0 before one comes. A second signal, more than a second after the first, raises at
    once even in `held`. Signals that are ignored stay ignored, and outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._held = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._at < _SAME:
            return
        again, self.received, self._at = bool(self.received), number, now
        if again or not self._held:
            raise Stopped(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that a first signal does not break; whoever holds asks `received` afterwards."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
