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

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from glimodern.inputs.batch import LabelGroup, PackedBatch, TextTokens
from glimodern.inputs.packer import Packer

from .decode import TextSpans, decode_texts, text_spans
from .request import Request, Search, check_count
from .windows import Reading

if TYPE_CHECKING:
    from glimodern.ops import SpanEntities

ScoredEntity = tuple[int, int, str, float]
"""First word, last word (inclusive), label, score."""

_CHUNK_BATCHES = 8
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
    windows: number of windows the text was read in; 0 for a text without words or labels.
    label_groups: number of prompts that its labels were asked in.
    """

    entities: list[ScoredEntity]
    words_cut: int = 0
    cut_by_labels: bool = False
    windows: int = 0
    label_groups: int = 0


Candidates = Callable[[PackedBatch, "float | Tensor"], "SpanEntities"]
"""Maps a packed batch on the CPU, and a threshold or one per type (fp32 [m]), to the spans with a probability above."""


class _Chunk(NamedTuple):
    """Requests in order, the number of the first one, and the error that the stream raised after them."""

    requests: list[Request]
    first: int
    error: Exception | None = None


class _Passage(NamedTuple):
    """Words of a text that are read together, and the labels asked of them.

    request: index in the chunk. window: index in the text's windows. first_word: the passage's first word in the text.
    """

    request: int
    window: int
    first_word: int
    tokens: TextTokens
    group: LabelGroup


class _PreparedChunk:
    """A chunk, tokenised, cut into passages and packed; requests without words or labels have no passage."""

    def __init__(self, chunk: _Chunk, packer: Packer, reading: Reading, batch_tokens: int) -> None:
        self.requests, first, self.error = chunk
        self.packer, self.reading = packer, reading
        self.windows: list[list[tuple[int, int]]] = [[] for _ in self.requests]
        self.groups: list[tuple[LabelGroup, ...]] = [() for _ in self.requests]
        self.cut_by_labels = [False for _ in self.requests]
        nonempty = [i for i, request in enumerate(self.requests) if request.words and request.labels.names]
        whole = max((len(self.requests[i].words) for i in nonempty), default=0) if reading.reads_whole else None
        tokens = packer.tokenize([self.requests[i].words for i in nonempty], max_words=whole)
        passages: list[_Passage] = []
        for i, text in zip(nonempty, tokens, strict=True):
            try:
                passages += self._passages(i, first + i, text)
            except ValueError as error:  # the results of the texts before it are still yielded
                self.requests, self.error = self.requests[:i], error
                break
        sizes = [packer.length(passage.tokens, passage.group.prompt) for passage in passages]
        mean_size = sum(sizes) / max(-(-sum(sizes) // batch_tokens), 1)  # for the smallest possible number of batches
        batches: list[list[_Passage]] = []
        total = 0
        for n in sorted(range(len(passages)), key=lambda n: -sizes[n]):  # stable sort, for reproducible batches
            if not batches or total >= mean_size or total + sizes[n] > batch_tokens:
                batches.append([])
                total = 0
            batches[-1].append(passages[n])
            total += sizes[n]
        self.batches = [(batch, self.pack(batch)) for batch in batches]

    def _passages(self, i: int, number: int, text: TextTokens) -> Iterator[_Passage]:
        """Cut request i of the chunk, the text `number` of the stream, into passages."""
        request = self.requests[i]
        self.groups[i] = groups = self.packer.label_groups(request.labels.prompts, self.reading.labels_per_prompt)
        budgets = [self.packer.text_budget(group.prompt) for group in groups]
        max_tokens = min((budget for budget in budgets if budget is not None), default=None)
        self.windows[i], parts = self.reading.windows(request, text, self.packer, max_tokens, number)
        over = max_tokens is not None and len(text.ids) > max_tokens
        self.cut_by_labels[i] = over and not self.reading.reads_whole and self.packer.fits_alone(text)
        for window, ((first, _), part) in enumerate(zip(self.windows[i], parts, strict=True)):
            for group in groups:
                yield _Passage(i, window, first, part, group)

    def pack(self, batch: Sequence[_Passage]) -> PackedBatch:
        labels, prompts = [passage.group.labels for passage in batch], [passage.group.prompt for passage in batch]
        return self.packer.pack_tokens([passage.tokens for passage in batch], labels, prompts=prompts)

    def thresholds(self, batch: Sequence[_Passage]) -> float | Tensor:
        """Return the threshold of a batch, or one for each of its types, fp32 [m]."""
        given = [self.requests[passage.request].threshold for passage in batch]
        if not isinstance(given[0], tuple) and all(threshold == given[0] for threshold in given):
            return given[0]
        columns: list[float] = []
        for threshold, passage in zip(given, batch, strict=True):
            first, count = passage.group.first, len(passage.group.labels)
            columns += threshold[first : first + count] if isinstance(threshold, tuple) else [threshold] * count
        return torch.tensor(columns, dtype=torch.float32, device="cpu")


def _chunks(requests: Iterable[Request], batch_tokens: int, packer: Packer, reading: Reading) -> Iterator[_Chunk]:
    """Cut a stream into chunks of about _CHUNK_BATCHES batches; token numbers are estimated from words and labels."""
    stream, chunk, first, budget = iter(requests), list[Request](), 0, _CHUNK_BATCHES * batch_tokens
    while True:
        try:
            request = next(stream)
        except StopIteration:
            break
        except Exception as error:
            yield _Chunk(chunk, first, error)
            return
        chunk.append(request)
        words = len(request.words) if reading.reads_whole else min(len(request.words), packer.max_words)
        budget -= words + (2 * len(request.labels.names) if packer.asks_in_text else 0) + 1
        if budget <= 0:
            yield _Chunk(chunk, first)
            chunk, first, budget = [], first + len(chunk), _CHUNK_BATCHES * batch_tokens
    if chunk:
        yield _Chunk(chunk, first)


def find_entities(
    requests: Iterable[Request],
    packer: Packer,
    candidates: Candidates,
    search: Search,
    reading: Reading,
    batch_tokens: int,
) -> Iterator[tuple[Request, Result]]:
    """Yield each request with its result, in order; an error of the stream is raised after the results before it."""
    chunks = _chunks(requests, batch_tokens, packer, reading)

    def prepare(chunk: _Chunk) -> _PreparedChunk:
        return _PreparedChunk(chunk, packer, reading, batch_tokens)

    first = list(itertools.islice(chunks, 2))
    if len(first) < 2:  # nothing to overlap with
        for chunk in first:
            yield from _run_chunk(prepare(chunk), candidates, search)
        return
    process = os.getpid()
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-tokenize") as tokenizing:
        pending: tuple[_Chunk, Future[_PreparedChunk] | None] | None = None
        for chunk in itertools.chain(first, chunks):
            # a forked process that continues the stream does not have the thread
            future = tokenizing.submit(prepare, chunk) if os.getpid() == process else None
            if pending is not None:
                yield from _run_chunk(_prepared(*pending, prepare, process), candidates, search)
            pending = chunk, future
        if pending is not None:
            yield from _run_chunk(_prepared(*pending, prepare, process), candidates, search)


def _prepared(
    chunk: _Chunk, future: Future[_PreparedChunk] | None, prepare: Callable[[_Chunk], _PreparedChunk], process: int
) -> _PreparedChunk:
    return prepare(chunk) if future is None or os.getpid() != process else future.result()


def _run_chunk(chunk: _PreparedChunk, candidates: Candidates, search: Search) -> Iterator[tuple[Request, Result]]:
    """Yield a chunk's requests with their results, in order; raise the first error after the results before it."""
    error, end = chunk.error, len(chunk.requests)
    found: list[TextSpans] = []
    words_cut = [0] * end
    for batch, packed in chunk.batches:
        if min(passage.request for passage in batch) >= end:
            continue
        done: set[int] = set()
        try:
            for passages, computed, spans in _run_batch(chunk, batch, packed, candidates):
                done.update(map(id, passages))
                if isinstance(spans, RuntimeError):
                    if passages[0].request < end:
                        error, end = spans, passages[0].request
                    continue
                places = [(p.request, p.window, p.first_word, p.group.first) for p in passages]
                found.append(text_spans(spans, computed.cu_words, computed.cu_types, places))
                for passage, cut in zip(passages, computed.words_cut, strict=True):
                    words_cut[passage.request] = max(words_cut[passage.request], cut)
        except Exception as problem:
            failed = min(passage.request for passage in batch if id(passage) not in done)
            if failed < end:
                error, end = problem, failed
    decoded = decode_texts(
        found,
        [len(request.words) for request in chunk.requests[:end]],
        chunk.windows,
        flat=search.flat,
        multi_label=search.multi_label,
        top_k=search.top_k,
    )
    for i, request in enumerate(chunk.requests[:end]):
        names, cut = request.labels.names, words_cut[i]
        entities = [(start, last, names[type_id], score) for start, last, type_id, score in decoded.get(i, ())]
        by_labels = cut > 0 and chunk.cut_by_labels[i]
        yield request, Result(entities, cut, by_labels, len(chunk.windows[i]), len(chunk.groups[i]))
    if error is not None:
        raise error


def _run_batch(
    chunk: _PreparedChunk, batch: Sequence[_Passage], packed: PackedBatch, candidates: Candidates
) -> Iterator[tuple[Sequence[_Passage], PackedBatch, SpanEntities | RuntimeError]]:
    """Yield passages, their packed batch and their candidates; if memory runs out, split the batch and try again.

    A passage that does not fit the memory alone has the error to raise for it instead of candidates.
    """
    try:
        spans = candidates(packed, chunk.thresholds(batch))
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(batch) == 1:
            tokens = int(packed.cu_seqlens[-1])
            problem = RuntimeError(
                f"a text of {tokens} tokens with its prompt does not fit the memory; give a smaller window, or ask for "
                "fewer labels at a time"
            )
            problem.__cause__ = error.with_traceback(None)  # its frames keep the batch's tensors alive
            yield batch, packed, problem
            return
        spans = None
    if spans is not None:
        yield batch, packed, spans
        return
    # outside the except clause, because the error's frames keep the batch's tensors alive
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # cuBLAS and Triton allocate from the driver, not from PyTorch's cache
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _run_batch(chunk, part, chunk.pack(part), candidates)


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
