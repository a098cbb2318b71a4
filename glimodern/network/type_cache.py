"""A cache of a bi-encoder's type vectors for the labels of recent requests, and candidates from cached vectors."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.inputs.batch import LabelBatch
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.runtime.ambient import lasting
from glimodern.runtime.forks import watch_forks

from .base_head import Head, HeadRows, Rows
from .label_encoder import LabelEncoder

_MAX_LABELS = 4096  # cached labels of recent requests, and labels of one set whose fold is cached
_TYPE_ROWS = 4096  # maximum type vectors that are copied at a time, for one text or for consecutive texts


class Types(NamedTuple):
    """What a head computes of labels.

    row: label -> row. tensors: [labels, ·], the rows of types (`HeadRows.types`).
    """

    labels: tuple[str, ...]
    row: dict[str, int]
    tensors: Rows

    @classmethod
    def of(cls, labels: Sequence[str], vectors: Tensor, head: Head, reused: bool) -> "Types":
        """Compute the rows of types from label vectors [labels, d].

        reused: see `Head.type_rows`; for at most _MAX_LABELS labels.
        """
        reused = reused and len(vectors) <= _MAX_LABELS
        # In parts, because the hidden layers of heads are wider than d.
        parts = [head.type_rows(part, reused=reused) for part in vectors.split(_TYPE_ROWS)]
        tensors = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return cls(tuple(labels), {label: row for row, label in enumerate(labels)}, tensors)

    def joined(self, other: "Types") -> "Types":
        """Append the types of other labels; of tensors that only one of both has, none are left."""
        labels = (*self.labels, *other.labels)
        tensors = tuple(torch.cat(column) for column in zip(self.tensors, other.tensors, strict=False))
        return Types(labels, {label: row for row, label in enumerate(labels)}, tensors)

    def select(self, rows: Tensor) -> Rows:
        """Return some rows of each tensor. rows: int64, on their device."""
        return tuple(x.index_select(0, rows) for x in self.tensors)


class TypeCache:
    """Types of recently requested labels and of `LabelVectors`, for a model whose weights no longer change.

    Nothing is cached for a model that can be trained, because a fused optimizer changes weights without a trace. The
    cache is thread-safe. Copied and pickled models start with an empty cache.
    """

    def __init__(self) -> None:
        watch_forks(self)
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent process may hold, and empty the cache."""
        self._lock = Lock()
        self._drop(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return TypeCache, ()

    def _drop(self, key: tuple[torch.device, torch.dtype, tuple[nn.Module, bool]] | None) -> None:
        self._key = key
        self._by_label: Types | None = None
        self._by_vectors: WeakKeyDictionary[LabelVectors, Types] = WeakKeyDictionary()

    def find(
        self, labels: Sequence[str], label_vectors: LabelVectors | None, encoder: LabelEncoder, head: Head
    ) -> Types:
        """Return the types of these labels, and possibly of more, from label vectors or by the encoder.

        label_vectors: vectors of these labels; None: labels that are not cached are encoded.
        """
        weight = next(encoder.parameters())
        if not encoder.sealed:
            vectors = encoder(labels) if label_vectors is None else label_vectors.of(labels)
            return Types.of(labels, vectors.to(weight.device, weight.dtype), head, reused=False)
        with self._lock, lasting():
            key = (weight.device, weight.dtype, (head, head.packed))
            if self._key != key:
                self._drop(key)
            if label_vectors is None:
                return self._encoded(labels, encoder, head)
            types = self._by_vectors.get(label_vectors)
            if types is None:
                vectors = label_vectors.vectors.to(weight.device, weight.dtype)
                types = self._by_vectors[label_vectors] = Types.of(label_vectors.labels, vectors, head, reused=True)
            return types

    def _encoded(self, labels: Sequence[str], encoder: LabelEncoder, head: Head) -> Types:
        cached = self._by_label
        missing = [label for label in labels if cached is None or label not in cached.row]
        if cached is None or (missing and len(cached.labels) + len(missing) > _MAX_LABELS):
            cached = Types.of(labels, encoder(labels), head, reused=True)
        elif missing:
            cached = cached.joined(Types.of(missing, encoder(missing), head, reused=True))
        self._by_label = cached
        return cached


def label_entities(
    head: Head, words: Tensor, batch: LabelBatch, types: Types, threshold: float | Tensor
) -> ops.SpanEntities:
    """Find the candidate entities of a batch with the word vectors words [n, d].

    batch: on the CPU. types: of all labels of the batch. Texts are processed in runs (`_runs`), so that the rows of
    many labels are not copied for all texts at once.
    """
    word_rows = head.word_rows(words)
    index = batch.type_index
    if batch.labels != types.labels:
        index = torch.tensor([types.row[label] for label in batch.labels], dtype=torch.int64, device="cpu")[index]
    found = []
    # type_rows holds the rows `selected` of types. Texts with the same labels share one selection.
    selected, type_rows = torch.arange(len(types.labels), device="cpu"), types.tensors
    for (w0, w1), (t0, t1), texts in _runs(batch):
        if not torch.equal(selected, index[t0:t1]):
            selected = index[t0:t1]
            type_rows = types.select(selected.to(words.device))
        rows = HeadRows(tuple(x[w0:w1] for x in word_rows), type_rows)
        cu_words, cu_types = batch.cu_words[texts] - w0, batch.cu_types[texts] - t0
        limit = threshold[t0:t1].to(words.device) if isinstance(threshold, Tensor) else threshold
        part = head.entities(rows, cu_words.to(words.device), cu_types.to(words.device), limit)
        found.append(part._replace(word=part.word + w0, type=part.type + t0))
    return ops.SpanEntities(*(torch.cat(column) for column in zip(*found, strict=True)))


def _runs(batch: LabelBatch) -> Iterator[tuple[tuple[int, int], tuple[int, int], slice]]:
    """Yield runs of consecutive texts with at most _TYPE_ROWS types in all, or of one text.

    Each run is (bounds of its words, bounds of its types, slice of cu_words and cu_types).
    """
    words, types = batch.cu_words.tolist(), batch.cu_types.tolist()
    first = 0
    for text, (_, end) in enumerate(pairwise(types)):
        last = text + 2 == len(types)
        if last or types[text + 2] - types[first] > _TYPE_ROWS:
            yield (words[first], words[text + 1]), (types[first], end), slice(first, text + 2)
            first = text + 1
