"""Progress of a job: a bar on a terminal, a line of the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

LOG_SECONDS = 60  # between lines of the log

logger = logging.getLogger(__name__)


class Progress:
    """A context that shows rows, rows and words per second, and the time left.

    done, total: bytes of input of earlier runs, and of all. clock: seconds.
    """

    def __init__(self, done: int, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        from rich import progress

        from glimodern.display import console

        self.clock = clock
        self.began = self.logged = clock()
        self.done = self.first = done
        self.total = max(total, 1)
        self.rows = self.words = 0
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            disable=not self.shown,
            console=console(stderr=True),
        )
        self.task = self.bar.add_task("rows", total=self.total, completed=done, speed="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def add(self, rows: int, words: int, done: int) -> None:
        """Count rows and words. done: bytes of input up to them."""
        self.rows += rows
        self.words += words
        self.done = max(self.done, done)
        now = self.clock()
        if self.shown:
            self.bar.update(self.task, completed=self.done, speed=self.speed(now))
        elif now - self.logged >= LOG_SECONDS:
            self.logged = now
            logger.info("%.1f %%, %s", 100 * self.done / self.total, self.speed(now))

    def speed(self, now: float) -> str:
        """Return rows, rows and words per second, and the time left, in words."""
        seconds = max(now - self.began, 1e-9)
        said = f"{self.rows:,} rows, {self.rows / seconds:,.1f} rows/s, {self.words / seconds:,.0f} words/s"
        if self.done == self.first:
            return said
        left = int(seconds * (self.total - self.done) / (self.done - self.first))
        return f"{said}, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
