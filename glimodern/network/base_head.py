"""The interface of a head: word vectors and type prompts in; loss, logits, candidate entities or span scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from glimodern.inference.compute import SpanScores
from glimodern.inference.decode import Ties
from glimodern.inputs.batch import PackedBatch
from glimodern.ops import SpanEntities

Rows = tuple[Tensor, ...]


class HeadRows(NamedTuple):
    """What a head computes of each word and of each type alone.

    words: tensors [n, ·], one row per word. types: tensors [m, ·], one row per type.
    """

    words: Rows
    types: Rows


class LossOptions(NamedTuple):
    """Options of a batch's loss.

    focal_gamma .. reduction: see `ops.span_loss`. fused: False for the textbook form in plain PyTorch. dropout_p, seed:
    of the hidden layer of spans or pairs.
    """

    focal_gamma: float = 0.0
    focal_scale: float = 1.0
    class_balance: float | None = None
    reduction: str = "sum"
    fused: bool = True
    dropout_p: float = 0.0
    seed: int = 0


class Head(nn.Module, ABC):
    """A head of width d. `words` are word vectors [n, d], `prompts` type prompts [m, d].

    width: d. packed: whether `pack` was called. drops_hidden: whether dropout in training applies inside `loss`, to the
    hidden layer of spans or pairs. ties: the order of candidates with equal scores, that of gliner.
    """

    width: int
    packed: bool
    drops_hidden: bool
    ties: Ties

    def rows(self, words: Tensor, prompts: Tensor) -> HeadRows:
        """Compute the rows of words and types."""
        return HeadRows(self.word_rows(words), self.type_rows(prompts))

    @abstractmethod
    def word_rows(self, words: Tensor) -> Rows:
        """Compute the rows of words."""

    @abstractmethod
    def type_rows(self, prompts: Tensor, *, reused: bool = False) -> Rows:
        """Compute the rows of types. reused: for types that are asked again, so that more may be computed of each."""

    @abstractmethod
    def loss(self, words: Tensor, prompts: Tensor, batch: PackedBatch, options: LossOptions) -> Tensor:
        """Compute the loss of a batch with positives, a scalar."""

    @abstractmethod
    def logits(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor) -> list[Tensor]:
        """Compute all logits: one tensor [words, ·, ·] per text."""

    @abstractmethod
    def entities(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor, threshold: float | Tensor) -> SpanEntities:
        """Find the candidate entities. threshold: one for all types, or one per type, fp32 [m]."""

    @abstractmethod
    def span_scores(
        self, words: Tensor, rows: HeadRows, batch: PackedBatch, spans: Sequence[npt.NDArray[np.int64]], vectors: bool
    ) -> SpanScores:
        """Score given spans of a batch, and return their vectors if asked for.

        words: the word vectors that rows were computed from. batch: on the CPU. spans: see
        `inference.compute.SpanModel`.
        """

    @abstractmethod
    def pack(self, dtype: str, fold_dtype: str) -> None:
        """Pack the linear layers for inference.

        dtype: "fp32", "bf16" or "int8". fold_dtype: "fp32" or "bf16", of weights that multiply types alone.
        """
