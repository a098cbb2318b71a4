"""Prediction over a stream of requests, in order, in batches with a token budget.

The stream is cut into windows. All texts of a window are tokenised in one call, sorted by length and split into packed
batches. When the last batch of a window is done, its results are yielded in the order of its requests. While the model
computes a window, a thread tokenises and packs the next one. Memory holds two windows, however many texts there are.

If a text or the stream itself raises an error, the results of all requests before it are yielded first.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch

from glimodern.inputs.batch import PackedBatch, TextTokens
from glimodern.inputs.packer import Packer

from .decode import decode_batch
from .request import Request, Search, check_count

if TYPE_CHECKING:
    from glimodern.ops import SpanEntities

ScoredEntity = tuple[int, int, str, float]
"""First word, last word (inclusive), label, score."""

_WINDOW_BATCHES = 8
_CPU_BATCH_TOKENS = 2048  # measured (docs/LOG.md): more is not faster, fewer leave cores idle at a batch's end
_CUDA_BATCH_TOKENS = (4096, 65_536)  # min and max
_OUT_OF_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class Result(NamedTuple):
    """Result of one request.

    entities: (start, end, label, score); start and end are word indices, both inclusive.
    words_cut: number of words cut from the text's end.
    cut_by_labels: whether the text would have been read whole without the tokens of its labels.
    """

    entities: list[ScoredEntity]
    words_cut: int
    cut_by_labels: bool = False


Answer = tuple[Request, Result]
Candidates = Callable[[PackedBatch, float], "SpanEntities"]
"""Maps a packed batch on the CPU and a threshold to the spans with a probability above it."""


class _Batch(NamedTuple):
    texts: list[int]  # indices into the window's requests
    packed: PackedBatch


class _Chunk(NamedTuple):
    """Requests of one window, and the error that the stream raised after them."""

    requests: list[Request]
    error: Exception | None = None


class _Window:
    """A chunk of requests, tokenised and packed into batches; requests without words or labels are in no batch."""

    def __init__(self, chunk: _Chunk, packer: Packer, batch_tokens: int) -> None:
        self.requests, self.error = requests, _ = chunk
        self.packer = packer
        nonempty = [i for i, request in enumerate(requests) if request.words and request.labels.names]
        self.tokens: dict[int, TextTokens] = dict(
            zip(nonempty, packer.tokenize([requests[i].words for i in nonempty]), strict=True)
        )
        self.prompts = {i: packer.prompt(requests[i].labels.prompts) for i in nonempty}
        lengths = {i: packer.length(self.tokens[i], self.prompts[i]) for i in nonempty}
        total = sum(lengths.values())
        mean_size = total / max(-(-total // batch_tokens), 1)  # for the smallest possible number of batches
        groups: list[list[int]] = []
        size = 0
        for i in sorted(nonempty, key=lambda i: -lengths[i]):  # stable sort, for reproducible batches
            if not groups or size >= mean_size or size + lengths[i] > batch_tokens:
                groups.append([])
                size = 0
            groups[-1].append(i)
            size += lengths[i]
        self.batches = [self.pack(group) for group in groups]

    def pack(self, texts: list[int]) -> _Batch:
        labels = [self.requests[i].labels.prompts for i in texts]
        prompts = [self.prompts[i] for i in texts]
        return _Batch(texts, self.packer.pack_tokens([self.tokens[i] for i in texts], labels, prompts=prompts))


def _chunks(requests: Iterable[Request], batch_tokens: int, packer: Packer) -> Iterator[_Chunk]:
    """Cut a stream into chunks of about _WINDOW_BATCHES batches; token numbers are estimated from words and labels."""
    stream, chunk, budget = iter(requests), list[Request](), _WINDOW_BATCHES * batch_tokens
    while True:
        try:
            request = next(stream)
        except StopIteration:
            break
        except Exception as error:
            yield _Chunk(chunk, error)
            return
        chunk.append(request)
        label_tokens = 2 * len(request.labels.names) if packer.asks_in_text else 0
        budget -= min(len(request.words), packer.max_words) + label_tokens + 1
        if budget <= 0:
            yield _Chunk(chunk)
            chunk, budget = [], _WINDOW_BATCHES * batch_tokens
    if chunk:
        yield _Chunk(chunk)


def find_entities(
    requests: Iterable[Request], packer: Packer, candidates: Candidates, search: Search, batch_tokens: int
) -> Iterator[Answer]:
    """Yield each request with its result, in order; an error of the stream is raised after the results before it."""
    chunks = _chunks(requests, batch_tokens, packer)

    def prepare(chunk: _Chunk) -> _Window:
        return _Window(chunk, packer, batch_tokens)

    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:  # nothing to overlap with
        for chunk in first:
            yield from _run_window(prepare(chunk), candidates, search)
        return
    process = os.getpid()
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-tokenize") as tokenizing:
        pending: tuple[_Chunk, Future[_Window] | None] | None = None
        for chunk in itertools.chain(first, chunks):
            # a forked process that continues the stream does not have the thread
            future = tokenizing.submit(prepare, chunk) if os.getpid() == process else None
            if pending is not None:
                yield from _run_window(_prepared(*pending, prepare, process), candidates, search)
            pending = chunk, future
        if pending is not None:
            yield from _run_window(_prepared(*pending, prepare, process), candidates, search)


def _prepared(
    chunk: _Chunk, future: Future[_Window] | None, prepare: Callable[[_Chunk], _Window], process: int
) -> _Window:
    return prepare(chunk) if future is None or os.getpid() != process else future.result()


def _run_window(window: _Window, candidates: Candidates, search: Search) -> Iterator[Answer]:
    """Yield a window's requests with their results, in order; raise the first error after the results before it."""
    results = [None if i in window.tokens else Result([], 0) for i in range(len(window.requests))]
    error, end = window.error, len(results)
    for batch in window.batches:
        if min(batch.texts) >= end:
            continue
        try:
            for i, result in _run_batch(window, batch, candidates, search):
                if isinstance(result, Result):
                    results[i] = result
                elif i < end:
                    error, end = result, i
        except Exception as problem:
            failed = min(i for i in batch.texts if results[i] is None)
            if failed < end:
                error, end = problem, failed
    for request, completed in zip(window.requests[:end], results[:end], strict=True):
        if completed is not None:
            yield request, completed
    if error is not None:
        raise error


def _run_batch(
    window: _Window, batch: _Batch, candidates: Candidates, search: Search
) -> Iterator[tuple[int, Result | RuntimeError]]:
    """Yield (index in the window, result) for each text; if memory runs out, split the batch in halves and retry.

    The result of a text that does not fit the memory alone is the error to raise.
    """
    packed = batch.packed
    try:
        spans = candidates(packed, search.threshold)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(batch.texts) == 1:
            tokens = int(packed.cu_seqlens[-1])
            problem = RuntimeError(
                f"a text of {tokens} tokens with its prompt does not fit the memory; split it, or ask for fewer labels "
                "at a time"
            )
            problem.__cause__ = error.with_traceback(None)  # its frames keep the batch's tensors alive
            yield batch.texts[0], problem
            return
        spans = None
    if spans is None:  # outside the except clause, because the error's frames keep the batch's tensors alive
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # cuBLAS and Triton allocate from the driver, not from PyTorch's cache
        half = len(batch.texts) // 2
        for part in (batch.texts[:half], batch.texts[half:]):
            yield from _run_batch(window, window.pack(part), candidates, search)
        return
    decoded = decode_batch(spans, packed.cu_words, packed.cu_types, flat=search.flat, multi_label=search.multi_label)
    for row, (i, cut) in enumerate(zip(batch.texts, packed.words_cut, strict=True)):
        names = window.requests[i].labels.names
        entities = [(start, end, names[type_id], score) for start, end, type_id, score in decoded.get(row, ())]
        yield i, Result(entities, cut, cut > 0 and window.packer.fits_alone(window.tokens[i]))


def _out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means out of memory.

    PyTorch's GPU allocator raises its own class; its CPU allocator, the driver, cuBLAS and cuDNN differ in the message.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def activation_bytes(weight: torch.Tensor, width: int) -> int:
    """Approximate activation bytes per token for head width `width` in `weight.dtype`."""
    return 40 * width * weight.element_size()


def resolve_batch_tokens(batch_tokens: int | str, device: torch.device, bytes_per_token: int) -> int:
    """Return the maximum tokens of a batch.

    "auto": on a CPU, enough tokens to keep its cores busy; on a GPU, the tokens whose activations take half of its free
    memory, within the limits of `_CUDA_BATCH_TOKENS`. bytes_per_token: see `activation_bytes`.
    """
    if batch_tokens == "auto":
        return _CPU_BATCH_TOKENS if device.type != "cuda" else _cuda_batch_tokens(device, bytes_per_token)
    if isinstance(batch_tokens, str):
        raise ValueError(f'batch_tokens: expected a number of tokens or "auto", got {batch_tokens!r}')
    return check_count("batch_tokens", batch_tokens, 'a number of tokens or "auto"')


def _cuda_batch_tokens(device: torch.device, bytes_per_token: int) -> int:
    """Return the tokens whose activations take half of a GPU's free memory, within the limits."""
    least, most = _CUDA_BATCH_TOKENS
    return min(max(_free_bytes(device, int(time.monotonic())) // 2 // bytes_per_token, least), most)


@functools.lru_cache(maxsize=16)
def _free_bytes(device: torch.device, second: int) -> int:
    """Return a GPU's free bytes, PyTorch's unused cache included.

    The driver call is slow, but other processes allocate and free memory meanwhile: `second`, the current time, makes
    the cached value expire after one second.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
