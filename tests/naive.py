"""Naive definitions of the operators: one span, row or query at a time, sharing no code with `glimodern.reference`
but the type of its inputs.

They test the oracles, and the backend "reference", whose forward is the oracle itself. Signatures are the oracles'.
Floats are computed in the dtype of the inputs, and gradients flow; int8 products and masks are NumPy's.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from glimodern.reference import RelativePositions


def mix32(x: np.ndarray) -> np.ndarray:
    """The hash "lowbias32" (https://github.com/skeeto/hash-prospector) of uint32 values, which wrap around."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def keep(row: int, columns: int, dropout_p: float, seed: int) -> Tensor:
    """Which columns of one row dropout keeps, bool [columns]."""
    key = mix32(mix32(np.array([row % 2**32], dtype=np.uint32)) ^ np.uint32(seed % 2**32))
    hashes = mix32(key + np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9))
    return torch.from_numpy(hashes >= int(dropout_p * 2**32))


def drop(x: Tensor, row: int, dropout_p: float, seed: int) -> Tensor:
    """One row after dropout."""
    return x * keep(row, len(x), dropout_p, seed) / (1.0 - dropout_p) if dropout_p else x


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).unbind(0)
    return torch.stack([drop(row, number, p, seed) for number, row in enumerate(rows)]).view(x.shape) if rows else x


def _spans(cu_words: Tensor, max_width: int) -> Iterator[tuple[int, int, int, bool]]:
    """(text, first word, width - 1, whether the span stays inside the text), words counted in the batch."""
    bounds = cu_words.tolist()
    for text in range(len(bounds) - 1):
        for word in range(bounds[text], bounds[text + 1]):
            for k in range(max_width):
                yield text, word, k, word + k < bounds[text + 1]


def span_scores(
    a: Tensor, b: Tensor, u: Tensor, c: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int,
    dropout_p: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    firsts, lasts, bounds = a.unbind(0), b.unbind(0), cu_types.tolist()
    types = [(u[t0:t1], c[t0:t1]) for t0, t1 in zip(bounds, bounds[1:], strict=False)]
    rows = [c.new_empty(0)]
    for text, word, k, inside in _spans(cu_words, max_width):
        vectors, constants = types[text]
        if inside:
            hidden = torch.relu(firsts[word] + lasts[word + k])
            rows.append(vectors @ drop(hidden, word * max_width + k, dropout_p, seed) + constants)
        else:
            rows.append(torch.full_like(constants, -math.inf))
    return torch.cat(rows)


def span_vectors(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, cu_words: Tensor, max_width: int, spans: Tensor | None = None,
    dropout_p: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    firsts, lasts = a.unbind(0), b.unbind(0)
    rows = {}
    for _, word, k, inside in _spans(cu_words, max_width):
        rows[word, k] = torch.zeros_like(b2)
        if inside:
            hidden = torch.relu(firsts[word] + lasts[word + k])
            rows[word, k] = w2 @ drop(hidden, word * max_width + k, dropout_p, seed) + b2
    if spans is not None:
        chosen = [rows[word, k] for word, k in spans.tolist()]
        return torch.stack(chosen) if chosen else a.new_zeros(0, len(b2))
    return torch.stack(list(rows.values())).view(len(a), max_width, -1) if rows else a.new_zeros(0, max_width, len(b2))


def head_scores(
    starts: Tensor, ends: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor, q: Tensor,
    cu_words: Tensor, cu_types: Tensor, max_width: int, dropout_p: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """The span head as published: a vector a span, its products with the types of its text."""
    bounds = cu_types.tolist()
    rows = [q.new_empty(0)]
    for text, word, k, inside in _spans(cu_words, max_width):
        types = q[bounds[text] : bounds[text + 1]]
        if not inside:
            rows.append(torch.full_like(types[:, 0], -math.inf))
            continue
        hidden = torch.cat([starts[word], ends[word + k]])
        if w1 is not None:
            hidden = w1 @ hidden + b1
        hidden = drop(torch.relu(hidden), word * max_width + k, dropout_p, seed)
        rows.append(types @ (w2 @ hidden + b2))
    return torch.cat(rows)


def span_loss(
    a: Tensor, b: Tensor, u: Tensor, c: Tensor, cu_words: Tensor, cu_types: Tensor, positives: Tensor, max_width: int,
    focal_gamma: float = 0.0, focal_scale: float = 1.0, class_balance: float | None = None, reduction: str = "sum",
    dropout_p: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    logits = span_scores(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)
    return loss_of_scores(
        logits, cu_words, cu_types, positives, max_width, focal_gamma, focal_scale, class_balance, reduction
    )


def loss_of_scores(
    logits: Tensor, cu_words: Tensor, cu_types: Tensor, positives: Tensor, max_width: int, focal_gamma: float = 0.0,
    focal_scale: float = 1.0, class_balance: float | None = None, reduction: str = "sum",
) -> Tensor:  # fmt: skip
    """focal_scale * sum of -w (1 - p)^gamma log p, with p the probability of the truth and w its class's weight."""
    bounds, gold = cu_types.tolist(), {tuple(row) for row in positives.tolist()}
    signs, place, places = [], 0, []
    for text, word, k, inside in _spans(cu_words, max_width):
        for kind in range(bounds[text], bounds[text + 1]):
            if inside:
                places.append(place)
                signs.append(1.0 if (word, k, kind) in gold else -1.0)
            place += 1
    sign = logits.new_tensor(signs)
    x = logits[torch.tensor(places, dtype=torch.int64)] * sign
    loss = -torch.nn.functional.logsigmoid(x)
    if focal_gamma:
        loss = (1.0 - torch.sigmoid(x)) ** focal_gamma * loss
    if class_balance is not None:
        loss = torch.where(sign > 0, class_balance, 1.0 - class_balance) * loss
    total = focal_scale * loss.sum()
    return total / max(len(signs), 1) if reduction == "mean" else total


def token_scores(
    a: Tensor, b: Tensor, x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, b2: Tensor, cu_words: Tensor, cu_types: Tensor,
    dropout_p: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    words, types, rows = cu_words.tolist(), cu_types.tolist(), []
    for text in range(len(words) - 1):
        for word in range(words[text], words[text + 1]):
            for kind in range(types[text], types[text + 1]):
                hidden = torch.relu(a[word] + b[kind] + w1 @ (x[word] * y[kind]))
                rows.append(w2 @ drop(hidden, len(rows), dropout_p, seed) + b2)
    return torch.stack(rows) if rows else b2.new_empty(0, 3)


def probability(logit: float) -> np.float32:
    """sigmoid(logit) in fp64, rounded to fp32."""
    if math.isnan(logit):
        return np.float32(math.nan)
    return np.float32(1.0 / (1.0 + math.exp(-logit)) if logit > -700.0 else 0.0)


def span_entities(
    logits: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int, threshold: Tensor
) -> list[tuple[int, int, int, float]]:
    """(word, width, type, logit) of every candidate, from logits laid out as span_scores' are."""
    bounds, limits, values = cu_types.tolist(), threshold.numpy(), iter(logits.tolist())
    found = []
    for text, word, k, inside in _spans(cu_words, max_width):
        for kind in range(bounds[text], bounds[text + 1]):
            logit = next(values)
            score = probability(logit)
            if inside and (score > limits[kind] or np.isnan(score)):
                found.append((word, k, kind, logit))
    return found


def position_term(positions: RelativePositions, q: Tensor, k: Tensor, distance: int, head: int, scale: float) -> Tensor:
    """What the positions add to a head's score of one query and one key, [heads, head_dim] each."""
    reach = len(positions.rows) // 2
    row = int(positions.rows[max(-reach, min(distance, reach)) + reach])
    term = q.new_zeros(())
    if positions.c2p is not None:
        term = term + scale * q[head] @ positions.c2p[row, head]
    if positions.p2c is not None:
        term = term + scale * k[head] @ positions.p2c[row, head]
    if positions.bias is not None:
        term = term + positions.bias[row, head]
    return term


def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int | None = None, scale: float | None = None,
    dropout_p: float = 0.0, seed: int = 0, positions: RelativePositions | None = None,
) -> Tensor:  # fmt: skip
    """One query and head at a time."""
    tokens, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    bounds = cu_seqlens.tolist()
    rows = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        for query in range(start, end):
            for head in range(heads):
                seen = [key for key in range(start, end) if window is None or abs(query - key) <= window]
                scores = scale * (k[seen, head] @ q[query, head])
                if positions is not None:
                    terms = [position_term(positions, q[query], k[key], query - key, head, scale) for key in seen]
                    scores = scores + torch.stack(terms)
                weights = torch.exp(scores)
                p = weights / weights.sum()
                if dropout_p:
                    kept = keep(query * heads + head, end - start, dropout_p, seed)[[key - start for key in seen]]
                    p = p * kept / (1.0 - dropout_p)
                rows.append(p @ v[seen, head])
    return torch.stack(rows).view(tokens, heads, dim) if rows else q.new_zeros(q.shape)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x."""
    return x * 0.5 * torch.special.erfc(-x * 0.5**0.5)


def gelu_tanh(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh((2.0 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-x))


def gated(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return activation(x[..., :half]) * x[..., half:]


def geglu(x: Tensor) -> Tensor:
    return gated(gelu, x)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (x_j, x_{j+h}) as complex numbers, turned."""
    if not x.numel():
        return x.clone()
    half, turn = x.shape[-1] // 2, torch.complex(cos.to(x.dtype), sin.to(x.dtype))
    rows = [torch.complex(row[..., :half], row[..., half:]) * turn[token] for token, row in enumerate(x)]
    turned = torch.stack(rows)
    return torch.cat([turned.real, turned.imag], dim=-1)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    width = total.shape[-1]
    centred = total - total.sum(-1, keepdim=True) / width
    normed = centred / (centred.square().sum(-1, keepdim=True) / width + eps).sqrt() * weight
    return normed if bias is None else normed + bias, total


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    squares = total.square().sum(-1, keepdim=True) / total.shape[-1]
    return total / (squares + eps).sqrt() * weight, total


def quantise_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fp32 [o, i] -> whole numbers [o, i], fp32 scale [o]: the least scale that keeps both bounds, row by row."""
    inputs = weight.shape[1]
    rows, scales = [], []
    for row in weight:
        padded = np.pad(row, (0, -inputs % 8))
        least = np.float32(0.0)
        for first in range(0, len(padded), 8):
            for group in ((0, 1, 4, 5), (2, 3, 6, 7)):
                numbers = padded[[first + place for place in group]]
                positive, negative = (
                    np.float32(np.where(sign * numbers > 0, sign * numbers, 0).sum(dtype=np.float32))
                    for sign in (np.float32(1), np.float32(-1))
                )
                least = max(least, np.abs(numbers).max() / np.float32(127), max(positive, negative) / np.float32(126))
        scale = least if least > 0 else np.float32(1.0)
        rows.append(np.rint(row / scale).astype(np.int64))
        scales.append(scale)
    return np.array(rows, dtype=np.int64).reshape(weight.shape), np.array(scales, dtype=np.float32)


def linear_int8(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """x [n, i], weight [o, i], bias [o] -> fp32 [n, o], row by row, whole numbers in int64."""
    whole, scale = quantise_weight(weight.float().numpy())
    one, steps = np.float32(1), np.float32(255)
    rows = []
    for row in x.float().numpy():
        if not np.isfinite(row).all():
            rows.append(np.full(len(whole), np.nan, dtype=np.float32))
            continue
        low, high = min(row.min(initial=np.float32(0)), 0), max(row.max(initial=np.float32(0)), 0)
        step = max(-low / steps + high / steps, np.float32(1e-30) / steps)
        zero = np.rint(-low * (one / step))
        q = np.minimum(np.rint(row * (one / step)) + zero, steps)
        sums = (q - zero).astype(np.int64) @ whole.T
        rows.append(sums.astype(np.float32) * (np.float32(step) * scale))
    y = torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(x), len(whole)))
    y = y if bias is None else y + bias
    return y if activation is None else activation(y)
