"""The logits of packed batches by an exported model, and its candidates; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimodern.inference.compute import SpanScores
from glimodern.inference.decode import Candidates
from glimodern.inference.passages import FloatArray
from glimodern.inference.windows import IntArray
from glimodern.inputs.label_tokens import LabelTokens, in_chunks
from glimodern.inputs.tokens import LabelArrays, PackedArrays
from glimodern.tagging import Columns, least_of_spans, tagged_entities

from .feeds import feed_of, label_feed, padded_labels
from .session import Graph

Logits = npt.NDArray[np.float32]


class Scores:
    """The scores of one call's batches. Each label of a bi-encoder is tokenised once, and if packed encoded once.

    graph: the model. max_width: of spans; None: a token-level model. labels: the tokenizer of a bi-encoder's labels,
    else None. label_graph: its label graph in the layout "packed", else None. label_tokens: tokens of the labels that
    are encoded at a time.
    """

    def __init__(
        self,
        graph: Graph,
        max_width: int | None,
        labels: LabelTokens | None,
        label_graph: Graph | None,
        label_tokens: int,
    ) -> None:
        self.graph, self.max_width, self.label_graph = graph, max_width, label_graph
        self._labels, self._label_tokens = labels, label_tokens
        self._ids: dict[str, list[int]] = {}
        self._rows: dict[str, Logits] = {}

    def logits(self, arrays: PackedArrays) -> Logits:
        """Compute the logits of a packed batch, -inf outside of a text: of spans, [texts, words, max_width, types].

        Those of a token-level model are [texts, words, types, 3], for start, end and inside.
        """
        feed = feed_of("packed" if self.graph.description.part == "packed" else "padded", arrays, self.max_width)
        if not isinstance(arrays, LabelArrays):
            return self.graph.run(feed)
        if self.label_graph is not None:
            return self.graph.run(feed | {"label_rows": self._label_rows(self.label_graph, arrays.labels)})
        logits = self.graph.run(feed | padded_labels(self._token_ids(arrays.labels)))
        return _own_types(logits, arrays, 3 if self.max_width is not None else 2)

    def _token_ids(self, labels: Sequence[str]) -> list[list[int]]:
        if self._labels is not None and (new := [label for label in labels if label not in self._ids]):
            self._ids.update(zip(new, self._labels.ids(new), strict=True))
        return [self._ids[label] for label in labels]

    def _label_rows(self, label_graph: Graph, labels: Sequence[str]) -> Logits:
        new = [label for label in labels if label not in self._rows]
        if new:
            chunks = in_chunks(self._token_ids(new), self._label_tokens)
            rows = np.concatenate([label_graph.run(label_feed(chunk)) for chunk in chunks])
            self._rows.update(zip(new, rows, strict=True))
        return np.stack([self._rows[label] for label in labels])

    def candidates(self, arrays: PackedArrays, threshold: float | FloatArray) -> Candidates:
        """Return the spans and types of a batch with a probability above the threshold; see `SpanModel`."""
        logits = self.logits(arrays)
        cu_words, cu_types = arrays.cu_words.astype(np.int64), arrays.cu_types.astype(np.int64)
        if self.max_width is None:
            columns = Columns(np.diff(cu_words), np.diff(cu_types))
            limits = np.broadcast_to(np.asarray(threshold, dtype=np.float32), int(cu_types[-1]))
            pairs = np.concatenate([text.reshape(-1, 3) for text in self._of_texts(logits, arrays)])
            return Candidates(*tagged_entities(_sigmoid(pairs)[columns.order], limits, columns))
        probabilities = _sigmoid(logits)
        bounds: Any = threshold
        if not isinstance(threshold, float):
            bounds = np.ones((len(probabilities), 1, 1, probabilities.shape[3]), dtype=np.float32)
            bounds[:, 0, 0][_inside(arrays)] = threshold
        # 0 outside of a text, which is above no limit; NaN is a candidate, so that it is not hidden
        text, word, width, kind = np.nonzero(~(probabilities <= bounds))
        scores = probabilities[text, word, width, kind]
        return Candidates(word + cu_words[text], width, kind + cu_types[text], scores)

    def of_spans(self, arrays: PackedArrays, spans: Sequence[IntArray], vectors: bool) -> SpanScores:
        """Score given spans of a batch, rows (first word in the text, width - 1) for each text; see `SpanModel`."""
        texts = [_sigmoid(text) for text in self._of_texts(self.logits(arrays), arrays)]
        if self.max_width is None:
            return SpanScores([least_of_spans(*pair) for pair in zip(texts, spans, strict=True)], None)
        return SpanScores([text[rows[:, 0], rows[:, 1]] for text, rows in zip(texts, spans, strict=True)], None)

    def _of_texts(self, logits: Logits, arrays: PackedArrays) -> list[Logits]:
        """Return the logits of each text's words and types, without padding."""
        sizes = zip(logits, np.diff(arrays.cu_words), np.diff(arrays.cu_types), strict=True)
        if self.max_width is None:
            return [text[:words, :types] for text, words, types in sizes]
        return [text[:words, :, :types] for text, words, types in sizes]


def _inside(arrays: PackedArrays) -> npt.NDArray[np.bool_]:
    """Return which types each text has, of as many as the longest list has: bool [texts, types]."""
    counts = np.diff(arrays.cu_types)
    return np.arange(counts.max()) < counts[:, None]


def _own_types(logits: Logits, arrays: PackedArrays, axis: int) -> Logits:
    """Return the logits of each text's own types, of those of all labels of the batch. axis: of the labels."""
    inside, every = _inside(arrays), np.arange(logits.shape[axis])
    index: npt.NDArray[np.int64] = np.zeros_like(inside, dtype=np.int64)
    index[inside] = arrays.type_index
    if inside.all() and np.array_equal(index, np.tile(every, (len(index), 1))):
        return logits  # one list of labels for all texts
    shape = [len(index), *([1] * (logits.ndim - 1))]
    shape[axis] = -1
    own = np.take_along_axis(logits, index.reshape(shape), axis)
    return np.where(inside.reshape(shape), own, np.float32(-np.inf))


def _sigmoid(logits: Logits) -> FloatArray:
    """Return probabilities in fp32; 0 for -inf."""
    decay = np.exp(-np.abs(logits))
    probabilities: FloatArray = np.where(logits >= 0, 1, decay) / (1 + decay)
    return probabilities
