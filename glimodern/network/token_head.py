"""The head of token-level models: start, end and inside logits of every word and type.

    [h1_i | h2_i] = P_word h_i + c_word      [t1 | t2] = P_type p_t + c_type      halves of width d
    logits(i, t) = W2 drop(relu(W1 [h1_i | t1 | h2_i * t2] + b1)) + b2            three: start, end, inside

W1 multiplies a concatenation, so it splits into three parts. Two of them need a word or a type alone
(docs/ARCHITECTURE.md, "The token head"):

    a_i = W1a h1_i + b1      b_t = W1b t1      x_i = h2_i      y_t = t2
    logits(i, t) = W2 drop(relu(a_i + b_t + W1p (x_i * y_t))) + b2

Source: gliner 0.2.29 (https://github.com/urchade/GLiNER), its class Scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimodern import ops, reference
from glimodern.inference.compute import SpanScores
from glimodern.inference.decode import Ties
from glimodern.inputs.batch import PackedBatch
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_linear import PackedLinear, inputs_are_watched, watch_inputs
from glimodern.ops import SpanEntities
from glimodern.tagging import least_of_spans

from .base_head import Head, HeadRows, LossOptions, Rows
from .packed_head import PackedThirds


class TokenHead(Head):
    """GLiNER's token-level head of width d, H = 4d. Rows of words are a [n, H] and x [n, d]; of types b and y."""

    ties: Ties = "type"

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.drops_hidden = True
        self.packed = False
        self.word: nn.Module = nn.Linear(width, 2 * width)
        self.label: nn.Module = nn.Linear(width, 2 * width)
        first, last = nn.Linear(3 * width, 4 * width), nn.Linear(4 * width, 3)
        self.pair = nn.Sequential(first, Dropout(dropout), nn.ReLU(), last)

    def pack(self, dtype: str, fold_dtype: str) -> None:
        """Pack the two projections and the three parts of W1 for inference; see `Head.pack`. W2 has three rows only."""
        self.word = PackedLinear(cast(nn.Linear, self.word), dtype)
        self.label = PackedLinear(cast(nn.Linear, self.label), dtype)
        self.pair[0] = PackedThirds(cast(nn.Linear, self.pair[0]), dtype)
        self.packed = True

    def _w1(self) -> Sequence[Tensor | PackedLinear]:
        """Return W1a, W1b and W1p. The gradient of three parts that come from one call is one concatenation."""
        first = self.pair[0]
        return first.parts if isinstance(first, PackedThirds) else cast(nn.Linear, first).weight.chunk(3, dim=1)

    def _word_rows(self, words: Tensor, w1: Tensor | PackedLinear) -> Rows:
        """Compute a and x from projected words [n, 2d]. w1: W1a."""
        first, x = words.chunk(2, dim=1)
        a = w1(first) if isinstance(w1, PackedLinear) else F.linear(first, w1, cast(nn.Linear, self.pair[0]).bias)
        return a, x.contiguous()

    def _type_rows(self, types: Tensor, w1: Tensor | PackedLinear) -> Rows:
        """Compute b and y from projected types [m, 2d]. w1: W1b."""
        first, y = types.chunk(2, dim=1)
        return w1(first) if isinstance(w1, PackedLinear) else F.linear(first, w1), y.contiguous()

    def word_rows(self, words: Tensor) -> Rows:
        """Compute a [n, H] and x [n, d] from word vectors [n, d]."""
        return self._word_rows(self.word(words), self._w1()[0])

    def type_rows(self, prompts: Tensor, *, reused: bool = False) -> Rows:
        """Compute b [m, H] and y [m, d] from type prompts [m, d]."""
        return self._type_rows(self.label(prompts), self._w1()[1])

    def rows(self, words: Tensor, prompts: Tensor) -> HeadRows:
        """Compute the rows of words and types; see `Head.rows`."""
        return self._rows(words, prompts, self._w1())

    def _rows(self, words: Tensor, prompts: Tensor, w1: Sequence[Tensor | PackedLinear]) -> HeadRows:
        """Compute the rows of words and types, and report the inputs of W1 to `measured_inputs`."""
        projected, types = self.word(words), self.label(prompts)
        if inputs_are_watched(self.pair[0]) and len(words) and len(prompts):
            sizes = [half.detach().abs().amax(0, keepdim=True) for x in (projected, types) for half in x.chunk(2, 1)]
            # The products' sizes are exact for one text, whose words meet all types, and bounds for several.
            watch_inputs(self.pair[0], sizes[0], sizes[2], sizes[1] * sizes[3])
        return HeadRows(self._word_rows(projected, w1[0]), self._type_rows(types, w1[1]))

    def _scores(
        self,
        rows: HeadRows,
        w1: Tensor | PackedLinear,
        cu_words: Tensor,
        cu_types: Tensor,
        dropout_p: float = 0.0,
        seed: int = 0,
    ) -> Tensor:
        """Compute the logits [pairs, 3] of `ops.token_scores`. w1: W1p."""
        (a, x), (b, y) = rows.words, rows.types
        weight = w1.packed if isinstance(w1, PackedLinear) else w1
        last = cast(nn.Linear, self.pair[3])
        w2, b2 = last.weight, last.bias
        return ops.token_scores(a, b, x, y, weight, w2, b2, cu_words, cu_types, dropout_p=dropout_p, seed=seed)

    def loss(self, words: Tensor, prompts: Tensor, batch: PackedBatch, options: LossOptions) -> Tensor:
        """Compute the focal cross-entropy of the three logits of every word and type; see `Head.loss`."""
        gamma, scale, balance, reduction, fused, dropout_p, seed = options
        layout = (batch.cu_words, batch.cu_types)
        if fused:
            w1 = self._w1()
            logits = self._scores(self._rows(words, prompts, w1), w1[2], *layout, dropout_p, seed)
        else:
            first, last = (cast(nn.Linear, self.pair[number]) for number in (0, 3))
            weights = (first.weight, first.bias, last.weight, last.bias)
            logits = reference.textbook_token_scores(
                self.word(words), self.label(prompts), *weights, *layout, dropout_p, seed
            )
        targets = reference.token_targets(*layout, batch.positives)
        return reference.token_loss(logits, targets, gamma, scale, balance, reduction)

    def logits(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor) -> list[Tensor]:
        """Compute the start, end and inside logits: one tensor [words, types, 3] per text."""
        return ops.split_token_scores(self._scores(rows, self._w1()[2], cu_words, cu_types), cu_words, cu_types)

    def entities(self, rows: HeadRows, cu_words: Tensor, cu_types: Tensor, threshold: float | Tensor) -> SpanEntities:
        """Find the candidates of `ops.token_entities`; see `Head.entities`."""
        return ops.token_entities(self._scores(rows, self._w1()[2], cu_words, cu_types), cu_words, cu_types, threshold)

    def span_scores(
        self, words: Tensor, rows: HeadRows, batch: PackedBatch, spans: Sequence[npt.NDArray[np.int64]], vectors: bool
    ) -> SpanScores:
        """Score given spans: the least of start, end and inside; see `Head.span_scores`.

        A span's vector is the mean of its words' vectors, as in gliner.
        """
        cu_words, cu_types = batch.cu_words, batch.cu_types
        logits = self._scores(rows, self._w1()[2], cu_words.to(words.device), cu_types.to(words.device))
        probabilities = ops.probabilities(logits.flatten()).float().cpu().view(-1, 3)
        texts = ops.split_token_scores(probabilities, cu_words, cu_types)
        scores = [least_of_spans(text.numpy(), each) for text, each in zip(texts, spans, strict=True)]
        if not vectors:
            return SpanScores(scores, None)
        first_words = cu_words.numpy()[:-1]
        first, width = np.concatenate([each + [word, 0] for each, word in zip(spans, first_words, strict=True)]).T
        sums = F.pad(words.double().cumsum(0), (0, 0, 1, 0))
        begin = torch.from_numpy(first).to(words.device)
        count = torch.from_numpy(width + 1).to(words.device)
        means = (sums[begin + count] - sums[begin]) / count[:, None]
        return SpanScores(scores, means.float().cpu().numpy())
