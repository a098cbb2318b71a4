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

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from glimodern.checkpoint.config import SPAN_MODES
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_linear import watch_inputs
from glimodern.ops import PackedWeight, fold_types

from .packed_head import PackedFold, packed_mlp, packed_span


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


class SpanHead(nn.Module):
    """GLiNER's span head of width d.

    span_mode: "markerV0" (public checkpoints), "marker" (the oldest checkpoints) or "ffn" (the paper's equation 3).
    drops_spans: whether dropout in training applies to relu(a_i + b_j). packed: whether `pack` was called.
    """

    def __init__(self, width: int, dropout: float, span_mode: str) -> None:
        super().__init__()
        if span_mode not in SPAN_MODES:
            raise ValueError(f"span_mode: expected one of {SPAN_MODES}, got {span_mode!r}")
        self.width = width
        self.span_mode = span_mode
        self.drops_spans = span_mode != "marker"
        self.packed = False
        if span_mode != "ffn":
            factor = 2 if span_mode == "marker" else 4
            self.start = _mlp(width, width, dropout, factor)
            self.end = _mlp(width, width, dropout, factor)
        self.span: nn.Module = nn.Linear(2 * width, width) if span_mode == "marker" else _mlp(2 * width, width, dropout)
        self.prompt = _mlp(width, width, dropout)

    def parts(self, words: Tensor, prompts: Tensor) -> SpanParts:
        """Compute the textbook form's arguments from word vectors [n, d] and type prompts [m, d]."""
        if isinstance(self.span, nn.Linear):
            w2, b2 = self.span.weight, self.span.bias
            return SpanParts(self.start(words), self.end(words), None, None, w2, b2, self.prompt(prompts))
        if self.span_mode == "markerV0":
            starts, ends = F.relu(self.start(words)), F.relu(self.end(words))
        else:
            starts = ends = words
        w1, b1 = self.span.get_parameter("0.weight"), self.span.get_parameter("0.bias")
        w2, b2 = self.span.get_parameter("3.weight"), self.span.get_parameter("3.bias")
        return SpanParts(starts, ends, w1, b1, w2, b2, self.prompt(prompts))

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
        if self.packed:
            starts, ends = (words, words) if self.span_mode == "ffn" else (self.start(words), self.end(words))
            if isinstance(self.span, PackedFold):
                fold, (a, b) = self.span, _side_by_side(starts, ends)
            else:
                halves, fold = self.span.get_submodule("0"), cast(PackedFold, self.span.get_submodule("3"))
                a, b = halves(starts, ends)
            return SpanFactors(a, b, fold.packed, fold.b2, self.prompt(prompts))
        starts, ends, w1, b1, w2, b2, q = self.parts(words, prompts)
        if w1 is None:
            return SpanFactors(*_side_by_side(starts, ends), w2, b2, q)
        watch_inputs(self.span.get_submodule("0"), starts, ends)
        # The gradient of chunk is one concatenation; that of two slices would add zero-filled tensors.
        w1_start, w1_end = w1.chunk(2, dim=1)
        return SpanFactors(F.linear(starts, w1_start, b1), F.linear(ends, w1_end), w2, b2, q)

    def fold(self, words: Tensor, prompts: Tensor) -> Fold:
        """Compute the fold from word vectors [n, d] and type prompts [m, d]: a, b [n, H], u [m, H], c [m].

        The fold is exact up to rounding, in training too.
        """
        a, b, w2, b2, q = self.factors(words, prompts)
        return Fold(a, b, *fold_types(q, w2, b2))
