"""Entities of a stream of blocks, by one stream of predictions that does not end where a block or a shard ends."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .blocks import Block

Predict = Callable[[Iterator[str]], Iterable[Any]]
"""Maps a stream of texts to one of their Entities, as `GLiModern.predict` does."""


class Answered(NamedTuple):
    """A block and, for each of its rows, its Entities or the reason why it failed."""

    block: Block
    answers: list[Any]


class _OpenBlock:
    """A block with rows that wait for their entities."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.answers: list[Any] = [row.fault for row in block.rows]
        self.waiting = self.answers.count(None)


class _Feed:
    """The texts of a stream of blocks, and the rows that wait for their entities.

    error: what the stream of blocks raised. It is kept until the rows before it are answered.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.open: deque[_OpenBlock] = deque()
        self.waiting: deque[tuple[_OpenBlock, int]] = deque()
        self.error: Exception | None = None
        self.new_texts = self._texts(iter(blocks))

    def _texts(self, blocks: Iterator[Block]) -> Iterator[str]:
        while True:
            try:
                block = next(blocks, None)
            except Exception as error:  # raised again by `answered`
                self.error = error
                return
            if block is None:
                return
            opened = _OpenBlock(block)
            self.open.append(opened)
            for i, row in enumerate(block.rows):
                if row.fault is None:
                    self.waiting.append((opened, i))
                    yield row.text

    def texts(self) -> Iterator[str]:
        """Return the texts of all waiting rows, and then those of blocks not read yet."""
        return itertools.chain([block.block.rows[i].text for block, i in self.waiting], self.new_texts)

    def answer(self, answer: Any) -> None:
        """Set the answer of the first waiting row."""
        block, i = self.waiting.popleft()
        block.answers[i] = answer
        block.waiting -= 1

    def finished(self) -> Iterator[Answered]:
        """Yield the blocks at the front that wait for nothing more."""
        while self.open and not self.open[0].waiting:
            done = self.open.popleft()
            yield Answered(done.block, done.answers)


def answered(
    predict: Predict, blocks: Iterable[Block], is_of_text: Callable[[Exception, int], bool]
) -> Iterator[Answered]:
    """Yield all blocks with their answers, in order; an error of the stream of blocks is raised after those before it.

    A text that the model refuses fails alone, and a new stream of predictions begins after it. is_of_text: whether an
    error, after so many results of its stream, is one of a text.
    """
    feed = _Feed(blocks)
    while True:
        count = 0
        try:
            for entities in predict(feed.texts()):
                count += 1
                feed.answer(entities)
                yield from feed.finished()
        except (ValueError, RuntimeError) as error:
            if not feed.waiting or not is_of_text(error, count):
                raise
            feed.answer(str(error).removeprefix(f"texts[{count}]: "))
            continue
        yield from feed.finished()
        if feed.error is not None:
            raise feed.error
        return
