"""Prediction over a stream of requests, in order, in batches with a token budget.

The stream is cut into chunks. The texts of a chunk are tokenised in one call. A text becomes one passage, or several:
one for each window of a text that is too long, and for each group of labels that do not fit one prompt. The passages of
all texts are sorted by length and split into packed batches. When the last batch of a chunk is done, one search over
the candidates of all its passages finds the entities of its texts, and the results are yielded in the order of the
requests. While the model computes a chunk, a thread tokenises and packs the next one. Memory holds two chunks, however
many texts there are.

If a text or the stream itself raises an error, the results of all requests before it are yielded first.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from glimodern.inputs.packer import Packer

from .checks import check_count
from .compute import Result, SpanModel, run_chunk
from .passages import Chunk, PreparedChunk, cut_stream
from .request import Request, Search
from .windows import Reading


def find_entities(
    requests: Iterable[Request],
    packer: Packer,
    model: SpanModel,
    search: Search,
    reading: Reading,
    batch_tokens: int,
) -> Iterator[tuple[Request, Result]]:
    """Yield each request with its result, in order; an error of the stream is raised after the results before it."""
    chunks = cut_stream(requests, batch_tokens, packer, reading)

    def prepare(chunk: Chunk) -> PreparedChunk:
        return PreparedChunk(chunk, packer, reading, batch_tokens)

    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:  # nothing to overlap with
        for chunk in first:
            yield from run_chunk(prepare(chunk), model, search)
        return
    process = os.getpid()
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-tokenize") as tokenizing:
        pending: tuple[Chunk, Future[PreparedChunk] | None] | None = None
        for chunk in itertools.chain(first, chunks):
            # a forked process that continues the stream does not have the thread
            future = tokenizing.submit(prepare, chunk) if os.getpid() == process else None
            if pending is not None:
                yield from run_chunk(_prepared(*pending, prepare, process), model, search)
            pending = chunk, future
        if pending is not None:
            yield from run_chunk(_prepared(*pending, prepare, process), model, search)


def _prepared(
    chunk: Chunk, future: Future[PreparedChunk] | None, prepare: Callable[[Chunk], PreparedChunk], process: int
) -> PreparedChunk:
    return prepare(chunk) if future is None or os.getpid() != process else future.result()


def check_batch_tokens(batch_tokens: int | str) -> int | None:
    """Return the maximum tokens of a batch, None for "auto". Raises TypeError or ValueError."""
    if isinstance(batch_tokens, str) and batch_tokens == "auto":
        return None
    if isinstance(batch_tokens, str):
        raise ValueError(f'batch_tokens: expected a number of tokens or "auto", got {batch_tokens!r}')
    return check_count("batch_tokens", batch_tokens, 'a number of tokens or "auto"')
