"""Prediction over a stream of texts: words in, entities out, in order, in batches of a token budget.

Texts are taken a window at a time, tokenised in one call, sorted by length and cut into packed batches; a window's
results come out, in the order of its texts, when its last batch is done. While the model computes a window, the next
one is tokenised and packed in a thread of its own. Memory is that of two windows, however many texts there are.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from glimodern.decode import decode_batch
from glimodern.prompt import PackedBatch, PromptPacker, TextTokens

if TYPE_CHECKING:
    from glimodern.ops import SpanEntities

WordEntity = tuple[int, int, str, float]

_WINDOW_BATCHES = 8
_CPU_BATCH_TOKENS = 2048  # measured (docs/LOG.md): more gains nothing, fewer leave cores idle at a batch's end
_CUDA_BATCH_TOKENS = (4096, 65_536)
_OUT_OF_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class Asked(NamedTuple):
    """A text, given as words, and the distinct labels asked of it."""

    words: Sequence[str]
    labels: Sequence[str]


class Found(NamedTuple):
    """A text's entities (start, end, label, score), word indices inclusive, and how many words at its end were cut."""

    entities: list[WordEntity]
    words_cut: int


class Search(NamedTuple):
    """What counts as an entity: least probability, exclusive; no overlaps (flat), or only nesting; several labels for
    one span (multi_label)."""

    threshold: float
    flat: bool
    multi_label: bool


Candidates = Callable[[PackedBatch, float], "SpanEntities"]  # of a packed batch on the CPU: those above a probability


class _Batch(NamedTuple):
    texts: list[int]  # of the window
    packed: PackedBatch


class _Window:
    """Some texts of the stream: tokenised and cut into batches, those without words or labels left out."""

    def __init__(self, asked: list[Asked], packer: PromptPacker, batch_tokens: int) -> None:
        self.asked = asked
        self.packer = packer
        real = [i for i, item in enumerate(asked) if item.words and item.labels]
        self.tokens: dict[int, TextTokens] = dict(
            zip(real, packer.tokenize([asked[i].words for i in real]), strict=True)
        )
        lengths = {i: packer.length(self.tokens[i], asked[i].labels) for i in real}
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
        labels = [self.asked[i].labels for i in texts]
        return _Batch(texts, self.packer.pack_tokens([self.tokens[i] for i in texts], labels))


def _windows(asked: Iterable[Asked], batch_tokens: int, packer: PromptPacker) -> Iterator[list[Asked]]:
    """The stream in pieces of about _WINDOW_BATCHES batches, by words as the measure."""
    window: list[Asked] = []
    room = _WINDOW_BATCHES * batch_tokens
    for item in asked:
        window.append(item)
        room -= min(len(item.words), packer.max_words) + (2 * len(item.labels) if packer.asks_in_text else 0) + 1
        if room <= 0:
            yield window
            window, room = [], _WINDOW_BATCHES * batch_tokens
    if window:
        yield window


def find_entities(
    asked: Iterable[Asked], packer: PromptPacker, candidates: Candidates, search: Search, batch_tokens: int
) -> Iterator[Found]:
    """The entities of every text, in order. Raises ValueError for labels that overflow the encoder."""
    pieces = _windows(asked, batch_tokens, packer)
    first = list(itertools.islice(pieces, 2))
    if len(first) < 2:  # nothing to overlap with
        for piece in first:
            yield from _run_window(_Window(piece, packer, batch_tokens), candidates, search)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="glimodern-tokenize") as tokenizing:
        waiting: Future[_Window] | None = None
        for piece in itertools.chain(first, pieces):
            following = tokenizing.submit(_Window, piece, packer, batch_tokens)
            if waiting is not None:
                yield from _run_window(waiting.result(), candidates, search)
            waiting = following
        if waiting is not None:
            yield from _run_window(waiting.result(), candidates, search)


def _run_window(window: _Window, candidates: Candidates, search: Search) -> list[Found]:
    found = [Found([], 0) for _ in window.asked]
    for batch in window.batches:
        for i, result in _run_batch(window, batch, candidates, search):
            found[i] = result
    return found


def _run_batch(window: _Window, batch: _Batch, candidates: Candidates, search: Search) -> Iterator[tuple[int, Found]]:
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
        labels = window.asked[i].labels
        entities = [(start, end, labels[kind], score) for start, end, kind, score in decoded.get(place, ())]
        yield i, Found(entities, cut)


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
    if not isinstance(batch_tokens, int) or isinstance(batch_tokens, bool) or batch_tokens < 1:
        raise ValueError(f'batch_tokens: wanted a number of tokens or "auto", got {batch_tokens!r}')
    return batch_tokens


def _cuda_batch_tokens(device: torch.device, bytes_per_token: int) -> int:
    """Half of the free memory; what batches leave in PyTorch's cache is free although the driver says not."""
    least, most = _CUDA_BATCH_TOKENS
    return min(max(_free_bytes(device, int(time.monotonic())) // 2 // bytes_per_token, least), most)


@functools.lru_cache(maxsize=16)
def _free_bytes(device: torch.device, second: int) -> int:
    """A GPU's free bytes, asked once a second: the driver takes its time, but other models come and go."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def check_threshold(threshold: float) -> None:
    """ValueError for what is no probability."""
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: wanted a probability in [0, 1], got {threshold!r}")


def check_labels(labels: Sequence[str]) -> list[str]:
    """Distinct labels in the order given; TypeError for anything that is not a sequence of strings, ValueError for an
    empty one."""
    if isinstance(labels, str):
        raise TypeError(f"labels: wanted a sequence of strings, got the string {labels!r}; write [{labels!r}]")
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"labels[{i}]: wanted a string, got {type(label).__name__}")
        if not label.strip():
            raise ValueError(f"labels[{i}]: wanted a name such as 'person', got an empty string")
    return list(dict.fromkeys(labels))


def pair_labels(texts: Iterable[str], labels: Iterable[Any]) -> Iterator[tuple[str, list[str]]]:
    """(text, the labels asked of it): the same of all where `labels` holds strings, else one sequence a text.

    Raises TypeError and ValueError as check_labels does, and ValueError unless there are as many sequences as texts: at
    once if both have a length, else where one ends.
    """
    if isinstance(labels, str):
        check_labels(labels)
    iterator = iter(labels)
    head = list(itertools.islice(iterator, 1))
    if not head or not isinstance(head[0], Sequence) or isinstance(head[0], str):
        shared = check_labels([*head, *iterator])
        return ((text, shared) for text in texts)
    if isinstance(texts, Sequence) and isinstance(labels, Sequence) and len(texts) != len(labels):
        raise ValueError(f"labels: wanted one list of labels per text ({len(texts)}), got {len(labels)} lists")
    return _pair_each(texts, itertools.chain(head, iterator))


def _pair_each(texts: Iterable[str], labels: Iterator[Any]) -> Iterator[tuple[str, list[str]]]:
    missing: Any = object()
    count = 0
    for count, text in enumerate(texts, 1):
        one = next(labels, missing)
        if one is missing:
            raise ValueError(f"labels: wanted one list of labels per text, got {count - 1} lists and more texts")
        yield text, check_labels(one)
    if next(labels, missing) is not missing:
        raise ValueError(f"labels: wanted one list of labels per text ({count}), got more")
