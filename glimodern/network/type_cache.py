"""The type vectors of labels that were asked last, kept for a bi-encoder whose weights stay as they are."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.inputs.label_packer import LabelBatch
from glimodern.inputs.label_vectors import LabelVectors
from glimodern.runtime.ambient import lasting
from glimodern.runtime.forks import watch_forks

from .head import SpanHead
from .label_encoder import LabelEncoder

_LABELS_KEPT = 4096  # of the labels that were asked last; and of label vectors whose fold is kept
_TYPE_ROWS = 4096  # type vectors that exist twice: one text's, or those of some texts with few types


class Types(NamedTuple):
    """Labels, the row of each, their type vectors q [labels, d], and u [labels, H], c [labels] of the fold if kept."""

    labels: tuple[str, ...]
    rows: dict[str, int]
    q: Tensor
    folded: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, labels: Sequence[str], vectors: Tensor, head: SpanHead, fold: bool) -> "Types":
        """The head's side of label vectors [labels, d]."""
        # some at a time: the hidden layer of MLP_prompt is four times as wide
        q = torch.cat([head.prompt(part) for part in vectors.split(_TYPE_ROWS)])
        _, _, w2, b2, _ = head.factors(q[:0], q[:0])
        folded = ops.fold_types(q, w2, b2) if fold and len(q) <= _LABELS_KEPT else None
        return cls(tuple(labels), {label: row for row, label in enumerate(labels)}, q, folded)

    def joined(self, other: "Types") -> "Types":
        """With those of other labels after them."""
        labels = (*self.labels, *other.labels)
        folded = None
        if self.folded is not None and other.folded is not None:
            folded = (torch.cat([self.folded[0], other.folded[0]]), torch.cat([self.folded[1], other.folded[1]]))
        return Types(labels, {label: row for row, label in enumerate(labels)}, torch.cat([self.q, other.q]), folded)


class TypeCache:
    """The types of the labels that were asked last, and of `LabelVectors`, for a model whose weights stay as they are.

    Of a model that can be trained nothing is kept: a fused optimizer changes weights and leaves no trace. Safe to use
    from several threads.
    """

    def __init__(self) -> None:
        watch_forks(self)
        self.after_fork()

    def after_fork(self) -> None:
        """Start anew: a thread of the parent may hold the lock."""
        self._lock = Lock()
        self._drop(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return TypeCache, ()  # of a copied or pickled model: nothing kept, a lock of its own

    def _drop(self, place: tuple[torch.device, torch.dtype, nn.Module] | None) -> None:
        self._place = place
        self._asked: Types | None = None
        self._given: WeakKeyDictionary[LabelVectors, Types] = WeakKeyDictionary()

    def find(
        self, labels: Sequence[str], label_vectors: LabelVectors | None, encoder: LabelEncoder, head: SpanHead
    ) -> Types:
        """Of these labels and maybe more: from label vectors, or by the encoder where they are not kept."""
        weight = next(encoder.parameters())
        if not encoder.sealed:
            vectors = encoder(labels) if label_vectors is None else label_vectors.of(labels)
            return Types.of(labels, vectors.to(weight.device, weight.dtype), head, fold=False)
        with self._lock, lasting():
            place = (weight.device, weight.dtype, head.prompt)  # packing gives the head another
            if self._place != place:
                self._drop(place)
            if label_vectors is None:
                return self._encoded(labels, encoder, head)
            types = self._given.get(label_vectors)
            if types is None:
                vectors = label_vectors.vectors.to(weight.device, weight.dtype)
                types = self._given[label_vectors] = Types.of(label_vectors.labels, vectors, head, fold=True)
            return types

    def _encoded(self, labels: Sequence[str], encoder: LabelEncoder, head: SpanHead) -> Types:
        kept = self._asked
        missing = [label for label in labels if kept is None or label not in kept.rows]
        if kept is None or (missing and len(kept.labels) + len(missing) > _LABELS_KEPT):
            kept = Types.of(labels, encoder(labels), head, fold=True)
        elif missing:
            kept = kept.joined(Types.of(missing, encoder(missing), head, fold=True))
        self._asked = kept
        return kept


def label_entities(
    head: SpanHead, words: Tensor, batch: LabelBatch, types: Types, max_width: int, threshold: float
) -> ops.SpanEntities:
    """Candidates of a batch whose words [n, d] are known. batch: on the CPU.

    A few texts at a time, so that type vectors of many labels are not repeated for every text.
    """
    a, b, w2, b2, _ = head.factors(words, types.q[:0])
    index = batch.type_index
    if batch.labels != types.labels:
        index = torch.tensor([types.rows[label] for label in batch.labels], dtype=torch.int64, device="cpu")[index]
    everything = torch.arange(len(types.labels), device="cpu")
    found = []
    same, q, folded = everything, types.q, types.folded
    for (w0, w1), (t0, t1), texts in _runs(batch):
        if not torch.equal(same, index[t0:t1]):
            same = index[t0:t1]
            rows = same.to(words.device)
            q = types.q.index_select(0, rows)
            if types.folded is not None:
                folded = (types.folded[0].index_select(0, rows), types.folded[1].index_select(0, rows))
        cu_words, cu_types = batch.cu_words[texts] - w0, batch.cu_types[texts] - t0
        bounds = (cu_words.to(a.device), cu_types.to(a.device))
        part = ops.head_entities(a[w0:w1], b[w0:w1], w2, b2, q, *bounds, max_width, threshold, folded)
        found.append(part._replace(word=part.word + w0, type=part.type + t0))
    return ops.SpanEntities(*(torch.cat(column) for column in zip(*found, strict=True)))


def _runs(batch: LabelBatch) -> Iterator[tuple[tuple[int, int], tuple[int, int], slice]]:
    """Consecutive texts with at most _TYPE_ROWS types, or one text: bounds of words and types, and of the offsets."""
    words, types = batch.cu_words.tolist(), batch.cu_types.tolist()
    first = 0
    for text, (_, end) in enumerate(pairwise(types)):
        last = text + 2 == len(types)
        if last or types[text + 2] - types[first] > _TYPE_ROWS:
            yield (words[first], words[text + 1]), (types[first], end), slice(first, text + 2)
            first = text + 1
