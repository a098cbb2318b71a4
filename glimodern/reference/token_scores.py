"""The oracles of token_scores and of a token-level model's loss and entities.

Symbols: n words and m entity types in the packed batch, d the head's width, H the hidden width of its scorer. A pair is
a word and a type of one text.

    logits(i, t) = W2 drop(relu(a_i + b_t + W1p (x_i * y_t))) + b2        three: start, end, inside

Pairs are laid out text after text, each row-major [words, types]. Logits are fp32, and fp64 for fp64 inputs.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .dropout import dropout
from .span import focal_sum, fp32_product


def pair_offsets(cu_words: Tensor, cu_types: Tensor) -> Tensor:
    """int64 [texts + 1] on the same device: the first pair of each text, and the number of all pairs."""
    sizes = cu_words.diff().long() * cu_types.diff()
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def pair_indices(cu_words: Tensor, cu_types: Tensor) -> tuple[Tensor, Tensor]:
    """(word, type) of each pair, counted in the batch: two int64 [pairs] on the same device."""
    offsets = pair_offsets(cu_words, cu_types)
    sizes = offsets.diff()
    text = torch.repeat_interleave(torch.arange(len(sizes), device=cu_words.device), sizes)
    place, types = torch.arange(len(text), device=cu_words.device) - offsets[text], cu_types.diff().long()[text]
    word = torch.div(place, types, rounding_mode="floor")
    return cu_words.long()[text] + word, cu_types.long()[text] + place - word * types


def token_hidden(
    a: Tensor, b: Tensor, x: Tensor, y: Tensor, w1: Tensor, dropout_p: float = 0.0, seed: int = 0, first: int = 0
) -> Tensor:
    """drop(relu(a_i + b_t + W1p (x_i * y_t))) of one text: a, x of its words, b, y of its types -> [words, types, H].

    The products are in the inputs' dtype, the rest in fp32, or fp64 for fp64.
    first: the text's first pair in the batch, for the dropout mask.
    """
    pairs = (x[:, None] * y[None]).flatten(0, 1)
    hidden = torch.relu(fp32_product(pairs, w1) + (a[:, None] + b[None]).flatten(0, 1))
    if dropout_p > 0.0:
        hidden = dropout(hidden, dropout_p, seed, first)
    return hidden.unflatten(0, (len(a), len(b)))


def token_scores(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    w1: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Start, end and inside logits of every word and type of its text.

    a: [n, H]. b: [m, H]. x: [n, d]. y: [m, d]. w1: [H, d], the part W1p of W1. w2: [3, H]. b2: [3]. cu_words, cu_types:
    int [texts + 1].

    Returns fp32 or fp64 [pairs, 3].
    """
    blocks = []
    words, types, first = cu_words.tolist(), cu_types.tolist(), 0
    for n0, n1, m0, m1 in zip(words, words[1:], types, types[1:], strict=False):
        hidden = token_hidden(a[n0:n1], b[m0:m1], x[n0:n1], y[m0:m1], w1, dropout_p, seed, first)
        blocks.append(fp32_product(hidden.flatten(0, 1), w2) + b2)
        first += len(blocks[-1])
    return torch.cat(blocks) if blocks else fp32_product(a[:0], w2)


def textbook_token_scores(
    words: Tensor,
    types: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Logits of the scorer before the fold: W2 drop(relu(W1 [word_1 | type_1 | word_2 * type_2] + b1)) + b2.

    words: [n, 2d], the halves word_1 and word_2. types: [m, 2d]. w1: [H, 3d]. b1: [H]. w2: [3, H]. b2: [3].

    Returns the layout of token_scores, with the same dropout mask. Stores [pairs, 3d] and [pairs, H].
    """
    blocks = []
    bounds, type_bounds, first = cu_words.tolist(), cu_types.tolist(), 0
    for n0, n1, m0, m1 in zip(bounds, bounds[1:], type_bounds, type_bounds[1:], strict=False):
        (word, word2), (kind, kind2) = words[n0:n1, None].chunk(2, -1), types[None, m0:m1].chunk(2, -1)
        shape = (n1 - n0, m1 - m0, word.shape[-1])
        pairs = torch.cat([word.expand(shape), kind.expand(shape), word2 * kind2], dim=-1).flatten(0, 1)
        hidden = torch.relu(torch.nn.functional.linear(pairs, w1, b1))
        if dropout_p > 0.0:
            hidden = dropout(hidden, dropout_p, seed, first)
        blocks.append(fp32_product(hidden, w2) + b2)
        first += len(hidden)
    return torch.cat(blocks) if blocks else fp32_product(words[:0, : w2.shape[1]], w2)


def token_targets(cu_words: Tensor, cu_types: Tensor, positives: Tensor) -> Tensor:
    """bool [pairs, 3]: where an entity of the type starts, ends, and is. positives: int [P, 3], rows (word, k, type).

    An entity reads word..word + k, counted in the batch, as its type is.
    """
    offsets = pair_offsets(cu_words, cu_types)
    targets = torch.zeros(int(offsets[-1]), 3, dtype=torch.bool, device=cu_words.device)
    if positives.numel():
        word, k, type_id = positives.long().T.contiguous()
        text = torch.searchsorted(cu_words[1:].long().contiguous(), word, right=True)
        step = cu_types.diff().long()[text]
        first = offsets[text] + (word - cu_words.long()[text]) * step + type_id - cu_types.long()[text]
        targets[first, 0] = True
        targets[first + k * step, 1] = True
        inside = torch.repeat_interleave(torch.arange(len(k), device=k.device), k + 1)
        place = torch.arange(len(inside), device=k.device) - ((k + 1).cumsum(0) - k - 1)[inside]
        targets[first[inside] + place * step[inside], 2] = True
    return targets


def token_loss(
    logits: Tensor,
    targets: Tensor,
    focal_gamma: float = 0.0,
    focal_scale: float = 1.0,
    class_balance: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Focal binary cross-entropy of three logits a pair, [pairs, 3], against targets bool [pairs, 3]: a scalar.

    The options are those of span_loss. reduction: "sum", or "mean", the sum divided by the number of pairs, not of
    logits, as in gliner.
    """
    total = focal_sum(logits, targets, focal_gamma, focal_scale, class_balance)
    return total / max(len(logits), 1) if reduction == "mean" else total


def token_entities(
    probabilities: Tensor, cu_words: Tensor, cu_types: Tensor, thresholds: Tensor
) -> Iterator[tuple[int, int, int, float]]:
    """The candidate entities of a batch, by (text, word, type, width): rows (word, width, type, score).

    probabilities: fp32 [pairs, 3], start, end and inside. thresholds: fp32 [m].

    An entity of a type begins at a word with start > threshold, ends at a word with end > threshold, and has inside >=
    threshold in all of its words. Its score is the least of all these. word and type count in the batch; width is the
    last word minus the first. Source: gliner 0.2.29, whose decoder this restates.
    """
    words, types, first = cu_words.tolist(), cu_types.tolist(), 0
    for n0, n1, m0, m1 in zip(words, words[1:], types, types[1:], strict=False):
        block = probabilities[first : first + (n1 - n0) * (m1 - m0)].view(n1 - n0, m1 - m0, 3).tolist()
        first += (n1 - n0) * (m1 - m0)
        for i in range(n1 - n0):
            for t in range(m1 - m0):
                limit, least = float(thresholds[m0 + t]), math.inf
                if not block[i][t][0] > limit:
                    continue
                for j in range(i, n1 - n0):
                    _, end, inside = block[j][t]
                    if inside < limit:
                        break
                    least = min(least, inside)
                    if end > limit:
                        yield n0 + i, j - i, m0 + t, min(least, block[i][t][0], end)
