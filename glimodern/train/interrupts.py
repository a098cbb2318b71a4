"""Handling of SIGINT (Ctrl-C) and SIGTERM: the current step ends first, so that a checkpoint can be written."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Seconds within which a second signal counts as the first one: a terminal sends a signal to every process, and a
# launcher passes it on to them again.
_SAME_SIGNAL = 1.0


class Stopped(KeyboardInterrupt):
    """Raised when SIGINT or SIGTERM ends a run. The message states the progress. number: the signal's number.

    exit_code: 128 + number.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class Interrupts:
    """A context in which SIGINT and SIGTERM raise Stopped. Inside `held`, the first signal is only recorded.

    received: the number of the signal received, 0 if there was none. A second signal, more than a second after the
    first, raises immediately, even inside `held`. Ignored signals stay ignored. Outside the main thread the context
    does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._held = 0
        self._handlers: dict[int, Any] = {}  # to restore

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._received_at < _SAME_SIGNAL:
            return
        repeated, self.received, self._received_at = bool(self.received), number, now
        if repeated or not self._held:
            raise Stopped(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context that a first signal does not interrupt. The caller must check `received` afterwards."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
