"""The span head: word vectors and type prompts in; the fold's four tensors, or the textbook form's parts, out.

    s = MLP_start(h)   e = MLP_end(h)   S(i,j) = W2 . drop(relu(W1 . relu([s_i | e_j]) + b1)) + b2      "markerV0"
                                        S(i,j) = W2 . relu([s_i | e_j]) + b2                            "marker"
                                        S(i,j) = W2 . drop(relu(W1 . [h_i | h_j] + b1)) + b2            "ffn"
    q = MLP_prompt(p)                   logit(i,j,t) = S(i,j) . q_t

W1 multiplies a concatenation and W2 is used only in a product with q, so the work of both moves from the spans to the
words and types (docs/ARCHITECTURE.md, "The fold"):

    a = x W1s^T + b1   b = y W1e^T   u = q W2   c = q b2      logit = drop(relu(a_i + b_j)) . u_t + c_t

where x and y are the two inputs of the concatenation. "marker", the mode of the oldest checkpoints, has no W1:

    a = [s | 0]        b = [0 | e]   so that relu(a_i + b_j) = relu([s_i | e_j])                       H = 2d

and the rest is the same. https://github.com/fastino-ai/GLiNER2/pull/143 proposed the same algebra with the hidden
tensor stored. Here the operators keep it on chip.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimodern import ops, reference
from glimodern.checkpoint.config import SPAN_HEADS
from glimodern.inference.compute import SpanScores
from glimodern.inference.decode import Ties
from glimodern.inputs.batch import PackedBatch, int32_offsets
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_linear import watch_inputs
from glimodern.ops import PackedWeight, SpanEntities, fold_types

from .base_head import Head, HeadRows, LossOptions, Rows
from .packed_head import PackedFold, PackedHalves, packed_mlp, packed_span


class Fold(NamedTuple):
    """The arguments of the span operators: a, b [n, H], u [m, H], c [m]."""

    a: Tensor
    b: Tensor
    u: Tensor
    c: Tensor


class SpanFactors(NamedTuple):
    """The arguments of head_scores and head_entities.

    a, b: [n, H]. w2: [d, H], or its packed transpose. b2: [d]. q: type vectors [m, d].
    """

    a: Tensor
    b: Tensor
    w2: Tensor | PackedWeight
    b2: Tensor
    q: Tensor


class SpanParts(NamedTuple):
    """The arguments of the textbook form (`reference.textbook_scores`).

    starts, ends: [n, d]. w1 [H, 2d], b1 [H]: None in the mode "marker", which has no W1. w2: [d, H]. b2: [d].
    q: type vectors [m, d].
    """

    starts: Tensor
    ends: Tensor
    w1: Tensor | None
    b1: Tensor | None
    w2: Tensor
    b2: Tensor
    q: Tensor


def _mlp(width_in: int, width: int, dropout: float, factor: int = 4) -> nn.Sequential:
    """Build Linear(width_in, H) - ReLU - Dropout - Linear(H, width), H = factor * width: a GLiNER head's projection."""
    hidden = factor * width
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, width))


def _side_by_side(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Build a = [s | 0] and b = [0 | e], the factors of a head without W1."""
    width = starts.shape[1]
    return F.pad(starts, (0, width)), F.pad(ends, (width, 0))


class SpanHead(Head):
    """GLiNER's span head of width d.

    span_mode: "markerV0" (public checkpoints), "marker" (the oldest checkpoints) or "ffn" (the paper's equation 3).
    max_width: most words of a span, K. Rows of words are a and b [n, H]; rows of types are q [m, d] and, if reused,
    u [m, H] and c [m].
    """

    ties: Ties = "span"

    def __init__(self, width: int, dropout: float, span_mode: str, max_width: int) -> None:
        super().__init__()
        if span_mode not in SPAN_HEADS:
            raise ValueError(f"span_mode: expected one of {SPAN_HEADS}, got {span_mode!r}")
        self.width = width
        self.span_mode = span_mode
        self.max_width = max_width
        self.drops_hidden = span_mode != "marker"
        self.packed = False
        if span_mode != "ffn":
            factor = 2 if span_mode == "marker" else 4
            self.start = _mlp(width, width, dropout, factor)
            self.end = _mlp(width, width, dropout, factor)
        self.span: nn.Module = nn.Linear(2 * width, width) if span_mode == "marker" else _mlp(2 * width, width, dropout)
        self.prompt = _mlp(width, width, dropout)

    def parts(self, words: Tensor, prompts: Tensor) -> SpanParts:
        """Compute the textbook form's arguments from word vectors [n, d] and type prompts [m, d]."""
        (starts, ends), q = self._ends(words), self.prompt(prompts)
        if isinstance(self.span, nn.Linear):
            return SpanParts(starts, ends, None, None, self.span.weight, self.span.bias, q)
        first, last = (cast(nn.Linear, self.span.get_submodule(name)) for name in ("0", "3"))
        return SpanParts(starts, ends, first.weight, first.bias, last.weight, last.bias, q)

    def _ends(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the two inputs of the span layer, words as starts and as ends [n, d]."""
        if self.span_mode == "ffn":
            return words, words
        starts, ends = self.start(words), self.end(words)
        if self.span_mode == "marker" or self.packed:  # packed: the ReLU is in the layers' epilogue
            return starts, ends
        return F.relu(starts), F.relu(ends)

    def pack(self, dtype: str, fold_dtype: str) -> None:
        """Pack the linear layers for inference, with the ReLUs that follow them in the epilogue.

        dtype: "fp32", "bf16" or "int8". fold_dtype: "fp32" or "bf16", the dtype of W2, from which the fold computes u.
        """
        for name in ("start", "end") if self.span_mode != "ffn" else ():
            activation = "relu" if self.span_mode == "markerV0" else "none"
            setattr(self, name, packed_mlp(self.get_submodule(name), dtype, activation))
        self.prompt = packed_mlp(self.prompt, dtype, "none")
        if isinstance(self.span, nn.Linear):
            self.span = PackedFold(self.span, fold_dtype)
        else:
            self.span = packed_span(self.span, dtype, fold_dtype)
        self.packed = True

    def factors(self, words: Tensor, prompts: Tensor) -> SpanFactors:
        """Compute the head's factors from word vectors [n, d] and type prompts [m, d].

        W1 is applied once per word, which gives a and b [n, H]. W2 is not applied yet.
        """
        a, b = self.word_rows(words)
        return SpanFactors(a, b, *self._last(), self.prompt(prompts))

    def word_rows(self, words: Tensor) -> Rows:
        """Compute a and b [n, H] from word vectors [n, d]."""
        starts, ends = self._ends(words)
        if isinstance(self.span, (nn.Linear, PackedFold)):
            return _side_by_side(starts, ends)
        first = self.span.get_submodule("0")
        if isinstance(first, PackedHalves):
            return first(starts, ends)
        watch_inputs(first, starts, ends)
        linear = cast(nn.Linear, first)
        # The gradient of chunk is one concatenation; that of two slices would add zero-filled tensors.
        w1_start, w1_end = linear.weight.chunk(2, dim=1)
        return F.linear(starts, w1_start, linear.bias), F.linear(ends, w1_end)

    def type_rows(self, prompts: Tensor, *, reused: bool = False) -> Rows:
        """Compute q [m, d] from type prompts [m, d]; for reused types, u [m, H] and c [m] of the fold too."""
        q = self.prompt(prompts)
        return (q, *fold_types(q, *self._last())) if reused else (q,)

    def _last(self) -> tuple[Tensor | PackedWeight, Tensor]:
        """Return W2 [d, H], or its packed transpose, and b2 [d]."""
        if self.packed:
            last = self.span if isinstance(self.span, PackedFold) else self.span.get_submodule("3")
            fold = cast(PackedFold, last)
            return fold.packed, fold.b2
        linear = cast(nn.Linear, self.span if isinstance(self.span, nn.Linear) else self.span.get_submodule("3"))
        return linear.weight, linear.bias

    def fold(self, words: Tensor, prompts: Tensor) -> Fold:
        """Compute the fold from word vectors [n, d] and type prompts [m, d]: a, b [n, H], u [m, H], c [m].

        The fold is exact up to rounding, in training too.
        """
        a, b, w2, b2, q = self.factors(words, prompts)
        return Fold(a, b, *fold_types(q, w2, b2))

    def loss(self, words: Tensor, prompts: Tensor, batch: PackedBatch, options: LossOptions) -> Tensor:
        """Compute the focal cross-entropy of every span and type; see `Head.loss`."""
        gamma, scale, balance, reduction, _, dropout_p, seed = options
        layout = (batch.cu_words, batch.cu_types)
        if options.fused:
            return ops.span_loss(
                *self.fold(words, prompts), *layout, batch.positives, self.max_width, focal_gamma=gamma,
                focal_scale=scale, class_balance=balance, reduction=reduction, dropout_p=dropout_p, seed=seed,
            )  # fmt: skip
        parts = self.parts(words, prompts)
        logits = reference.textbook_scores(*parts, *layout, self.max_width, dropout_p, seed)
        return reference.loss_of_scores(
            logits.float(), *layout, batch.positives, self.max_width, gamma, scale, balance, reduction
        )

    def logits(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor) -> list[Tensor]:
        """Compute the logits of every span and type: one tensor [words, max_width, types] per text.

        The logit of a span that leaves its text is -inf.
        """
        (a, b), q, width = rows.words, rows.types[0], self.max_width
        logits = ops.head_scores(a, b, *self._last(), q, cu_words, cu_types, width)
        return ops.split_scores(logits, cu_words, cu_types, width)

    def entities(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor, threshold: float | Tensor) -> SpanEntities:
        """Find the spans and types above the threshold; see `Head.entities`."""
        (a, b), (q, *fold) = rows.words, rows.types
        folded = (fold[0], fold[1]) if fold else None
        return ops.head_entities(a, b, *self._last(), q, cu_words, cu_types, self.max_width, threshold, folded)

    def span_scores(
        self, words: Tensor, rows: HeadRows, batch: PackedBatch, spans: Sequence[npt.NDArray[np.int64]], vectors: bool
    ) -> SpanScores:
        """Score given spans, and compute their vectors S; see `Head.span_scores`."""
        (a, b), (q, *fold), (w2, b2), device = rows.words, rows.types, self._last(), words.device
        first_words = batch.cu_words.numpy()[:-1]
        chosen = np.concatenate([each + [word, 0] for each, word in zip(spans, first_words, strict=True)])
        start, width = torch.from_numpy(chosen).to(device).unbind(1)
        # span_scores of a text whose words are the spans, one wide: the arithmetic of a search over all spans
        cu_spans, cu_types = int32_offsets([len(each) for each in spans]), batch.cu_types
        u, c = fold or fold_types(q, w2, b2)
        logits = ops.span_scores(a[start], b[start + width], u, c, cu_spans.to(device), cu_types.to(device), 1)
        texts = ops.split_scores(ops.probabilities(logits).cpu(), cu_spans, cu_types, 1)
        scores = [text[:, 0].float().numpy() for text in texts]
        if not vectors:
            return SpanScores(scores, None)
        last = w2.unpack().T.to(a.dtype) if isinstance(w2, PackedWeight) else w2
        found = ops.span_vectors(
            a, b, last, b2, batch.cu_words.to(device), self.max_width, torch.stack([start, width], 1)
        )
        return SpanScores(scores, found.float().cpu().numpy())
