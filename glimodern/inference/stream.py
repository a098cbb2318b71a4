"""Prediction over a stream of texts: words in, entities out, in order, in batches of a token budget.

Texts are taken a window at a time, tokenised in one call, sorted by length and cut into packed batches; a window's
results come out, in the order of its texts, when its last batch is done. While the model computes a window, the next
one is tokenised and packed in a thread of its own. Memory is that of two windows, however many texts there are.

A stream that fails, by a bad text or by an error of its own, first gives the results of all texts before that.
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

_WINDOW_BATCHES = 8
_CPU_BATCH_TOKENS = 2048  # measured (docs/LOG.md): more gains nothing, fewer leave cores idle at a batch's end
_CUDA_BATCH_TOKENS = (4096, 65_536)
_OUT_OF_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class Result(NamedTuple):
    """A text's entities (start, end, label, score), word indices inclusive; how many words at its end were cut, and
    whether it would have been read whole had its labels not taken their share of the tokens."""

    entities: list[ScoredEntity]
    words_cut: int
    cut_by_labels: bool = False


Answer = tuple[Request, Result]
Candidates = Callable[[PackedBatch, float], "SpanEntities"]  # of a packed batch on the CPU: those above a probability


class _Batch(NamedTuple):
    texts: list[int]  # of the window
    packed: PackedBatch


class _Piece(NamedTuple):
    """Requests that are computed together, and the error that the stream came to after them."""

    requests: list[Request]
    error: Exception | None = None


class _Window:
    """Some requests of the stream: tokenised and cut into batches, those without words or labels left out."""

    def __init__(self, piece: _Piece, packer: Packer, batch_tokens: int) -> None:
        self.requests, self.error = asked, _ = piece
        self.packer = packer
        real = [i for i, item in enumerate(asked) if item.words and item.labels.names]
        self.tokens: dict[int, TextTokens] = dict(
            zip(real, packer.tokenize([asked[i].words for i in real]), strict=True)
        )
        self.prompts = {i: packer.prompt(asked[i].labels.prompts) for i in real}
        lengths = {i: packer.length(self.tokens[i], self.prompts[i]) for i in real}
        total = sum(lengths.values())
        share = total / max(-(-total // batch_tokens), 1)  # of as few batches as can be
        groups: list[list[int]] = []
        size = 0
        for i in sorted(real, key=lambda i: -lengths[i]):  # stable: the same batches every time
            if not groups or size >= share or size + lengths[i] > batch_tokens:
                groups.append([])
                size = 0
            groups[-1].append(i)
            size += lengths[i]
        self.batches = [self.pack(group) for group in groups]

    def pack(self, texts: list[int]) -> _Batch:
        labels = [self.requests[i].labels.prompts for i in texts]
        prompts = [self.prompts[i] for i in texts]
        return _Batch(texts, self.packer.pack_tokens([self.tokens[i] for i in texts], labels, prompts=prompts))


def _pieces(requests: Iterable[Request], batch_tokens: int, packer: Packer) -> Iterator[_Piece]:
    """The stream in pieces of about _WINDOW_BATCHES batches, by words as the measure."""
    stream, taken, room = iter(requests), list[Request](), _WINDOW_BATCHES * batch_tokens
    while True:
        try:
            request = next(stream)
        except StopIteration:
            break
        except Exception as error:
            yield _Piece(taken, error)
            return
        taken.append(request)
        labels = 2 * len(request.labels.names) if packer.asks_in_text else 0
        room -= min(len(request.words), packer.max_words) + labels + 1
        if room <= 0:
            yield _Piece(taken)
            taken, room = [], _WINDOW_BATCHES * batch_tokens
    if taken:
        yield _Piece(taken)


def find_entities(
    requests: Iterable[Request], packer: Packer, candidates: Candidates, search: Search, batch_tokens: int
) -> Iterator[Answer]:
    """Each request with its result, in order. Errors of the stream itself pass, after the results before them."""
    pieces = _pieces(requests, batch_tokens, packer)

    def prepare(piece: _Piece) -> _Window:
        return _Window(piece, packer, batch_tokens)

    first = list(itertools.islice(pieces, 2))
    if len(first) < 2:  # nothing to overlap with
        for piece in first:
            yield from _run_window(prepare(piece), candidates, search)
        return
    process = os.getpid()
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-tokenize") as tokenizing:
        waiting: tuple[_Piece, Future[_Window] | None] | None = None
        for piece in itertools.chain(first, pieces):
            # a forked process that goes on with the stream has not the thread
            following = tokenizing.submit(prepare, piece) if os.getpid() == process else None
            if waiting is not None:
                yield from _run_window(_prepared(*waiting, prepare, process), candidates, search)
            waiting = piece, following
        if waiting is not None:
            yield from _run_window(_prepared(*waiting, prepare, process), candidates, search)


def _prepared(
    piece: _Piece, future: Future[_Window] | None, prepare: Callable[[_Piece], _Window], process: int
) -> _Window:
    return prepare(piece) if future is None or os.getpid() != process else future.result()


def _run_window(window: _Window, candidates: Candidates, search: Search) -> Iterator[Answer]:
    """Answers in order, up to the first that an error came in the place of; then that error."""
    results = [None if i in window.tokens else Result([], 0) for i in range(len(window.requests))]
    error, end = window.error, len(results)
    for batch in window.batches:
        if min(batch.texts) >= end:
            continue
        try:
            for i, result in _run_batch(window, batch, candidates, search):
                results[i] = result
        except Exception as problem:
            failed = min(i for i in batch.texts if results[i] is None)
            if failed < end:
                error, end = problem, failed
    for request, answer in zip(window.requests[:end], results[:end], strict=True):
        if answer is not None:
            yield request, answer
    if error is not None:
        raise error


def _run_batch(window: _Window, batch: _Batch, candidates: Candidates, search: Search) -> Iterator[tuple[int, Result]]:
    packed = batch.packed
    try:
        spans = candidates(packed, search.threshold)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(batch.texts) == 1:
            tokens = int(packed.cu_seqlens[-1])
            raise RuntimeError(
                f"a text of {tokens} tokens with its prompt does not fit the memory; split it, or ask fewer labels at "
                "a time"
            ) from error
        spans = None
    if spans is None:  # out of the except clause: the error's frames hold the batch's tensors
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # cuBLAS and Triton take theirs from the driver, not from PyTorch's cache
        half = len(batch.texts) // 2
        for part in (batch.texts[:half], batch.texts[half:]):
            yield from _run_batch(window, window.pack(part), candidates, search)
        return
    decoded = decode_batch(spans, packed.cu_words, packed.cu_types, flat=search.flat, multi_label=search.multi_label)
    for place, (i, cut) in enumerate(zip(batch.texts, packed.words_cut, strict=True)):
        names = window.requests[i].labels.names
        entities = [(start, end, names[type_id], score) for start, end, type_id, score in decoded.get(place, ())]
        yield i, Result(entities, cut, cut > 0 and window.packer.fits_alone(window.tokens[i]))


def _out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class for its GPU allocator's word; its CPU allocator, the driver, cuBLAS and cuDNN use a text."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def activation_bytes(weight: torch.Tensor, width: int) -> int:
    """Of a token, about: of a model with this head's width d that computes in the weight's dtype."""
    return 40 * width * weight.element_size()


def resolve_batch_tokens(batch_tokens: int | str, device: torch.device, bytes_per_token: int) -> int:
    """Tokens a batch may hold; "auto": what keeps the cores busy, or half of a GPU's free memory."""
    if batch_tokens == "auto":
        return _CPU_BATCH_TOKENS if device.type != "cuda" else _cuda_batch_tokens(device, bytes_per_token)
    if isinstance(batch_tokens, str):
        raise ValueError(f'batch_tokens: expected a number of tokens or "auto", got {batch_tokens!r}')
    return check_count("batch_tokens", batch_tokens, 'a number of tokens or "auto"')


def _cuda_batch_tokens(device: torch.device, bytes_per_token: int) -> int:
    """Half of the free memory; what batches leave in PyTorch's cache is free although the driver says not."""
    least, most = _CUDA_BATCH_TOKENS
    return min(max(_free_bytes(device, int(time.monotonic())) // 2 // bytes_per_token, least), most)


@functools.lru_cache(maxsize=16)
def _free_bytes(device: torch.device, second: int) -> int:
    """A GPU's free bytes, asked once a second: the driver takes its time, but other models come and go."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
