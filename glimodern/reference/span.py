"""The oracles of the span operators.

Symbols (ARCHITECTURE: the model): n words and m entity types in the packed batch, H the hidden width of the span
head, K = max_width.

    logit(i, k, t) = drop(relu(a_i + b_{i+k})) . u_t + c_t      for i and i+k inside one text, t a type of that text

Logits are fp32, and fp64 for fp64 inputs: rounded to bf16 they lie 0.016 apart near 3, and spans tie.
"""

import math

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def _multiply32(x: Tensor, factor: int) -> Tensor:
    """x * factor mod 2^32 on int64 tensors that hold uint32 values, without overflowing int64."""
    low = (x & 0xFFFF) * factor
    high = ((x >> 16) * factor) & 0xFFFF
    return (low + (high << 16)) & _MASK32


def mix32(x: Tensor) -> Tensor:
    """A bijective 32-bit hash with low bias; int64 tensor holding uint32 values, same shape out.

    Source: the two-round xorshift-multiply found by https://github.com/skeeto/hash-prospector ("lowbias32").
    """
    x = x ^ (x >> 16)
    x = _multiply32(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = _multiply32(x, 0x846CA68B)
    return x ^ (x >> 16)


def dropout_threshold(dropout_p: float) -> int:
    """The uint32 bound under which an element's hash means "dropped": floor(p * 2^32)."""
    return int(math.floor(dropout_p * 4294967296.0))


def dropout_keep(rows: Tensor, hidden: int, dropout_p: float, seed: int) -> Tensor:
    """Counter-based dropout mask, the same in forward, backward and every backend.

    rows int64 [r] the span's number i * K + k (i global in the batch) -> bool [r, hidden], True where kept.
    key = mix32(mix32(row mod 2^32) xor (seed mod 2^32)); keep(h) = mix32(key + h * 0x9E3779B9) >= floor(p * 2^32).
    """
    key = mix32(mix32(rows & _MASK32) ^ (seed & _MASK32))
    columns = _multiply32(torch.arange(hidden, device=rows.device), _GOLDEN)
    return mix32((key[:, None] + columns[None, :]) & _MASK32) >= dropout_threshold(dropout_p)


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """x [..., h] times dropout_keep over its rows, and times 1 / (1 - p)."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    keep = dropout_keep(torch.arange(len(rows), device=x.device), rows.shape[1], p, seed)
    return torch.where(keep, rows / (1.0 - p), torch.zeros((), dtype=x.dtype, device=x.device)).view(x.shape)


def wide_product(x: Tensor, y: Tensor) -> Tensor:
    """x [s, d], y [m, d] -> x y^T [s, m], summed and returned in fp32 (fp64 for fp64 inputs), under autocast too."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ y.to(dtype).T


def span_hidden(a: Tensor, b: Tensor, max_width: int, first_word: int, dropout_p: float, seed: int) -> Tensor:
    """drop(relu(a_i + b_{i+k})) of one text: a, b [w, H] -> [w, K, H]; zero where i+k leaves the text."""
    words, hidden = a.shape
    ends = torch.arange(words, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
    x = torch.relu(a[:, None, :] + b[ends.clamp(max=max(words - 1, 0))])
    x = torch.where((ends < words)[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    if dropout_p > 0.0:
        rows = first_word * max_width + torch.arange(words * max_width, device=a.device)
        keep = dropout_keep(rows, hidden, dropout_p, seed).view(words, max_width, hidden)
        x = torch.where(keep, x / (1.0 - dropout_p), torch.zeros((), dtype=x.dtype, device=x.device))
    return x


def span_scores(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Logits of every span and type, ragged by text.

    a, b [n, H], u [m, H], c [m], cu_words and cu_types int [texts + 1] -> fp32 or fp64 [sum over texts of words * K *
    types]: text after text, each block row-major [words, K, types]. A span that leaves its text has the logit -inf
    (probability 0) and no gradient.
    """
    blocks = []
    word_bounds, type_bounds = cu_words.tolist(), cu_types.tolist()
    for text in range(len(word_bounds) - 1):
        w0, w1 = word_bounds[text], word_bounds[text + 1]
        t0, t1 = type_bounds[text], type_bounds[text + 1]
        x = span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)
        logits = wide_product(x.flatten(0, 1), u[t0:t1]).unflatten(0, x.shape[:2]) + c[t0:t1]
        ends = torch.arange(w1 - w0, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        outside = (ends >= w1 - w0)[..., None].expand_as(logits)
        blocks.append(logits.masked_fill(outside, -math.inf).reshape(-1))
    return torch.cat(blocks) if blocks else wide_product(a[:0], u).flatten()


def focal_bce(x: Tensor, focal_gamma: float) -> Tensor:
    """sigmoid(x)^gamma * softplus(x), with x = logit for a negative and -logit for a positive (elementwise).

    This is (1 - p_t)^gamma * -log(p_t) of the focal loss (https://arxiv.org/abs/1708.02002), without cancellation.
    """
    loss = torch.nn.functional.softplus(x, threshold=50.0)
    return loss if focal_gamma == 0.0 else torch.sigmoid(x) ** focal_gamma * loss


def span_loss(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float = 0.0,
    focal_scale: float = 1.0,
    class_balance: float | None = None,
    reduction: str = "sum",
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Focal binary cross-entropy over every (span, type) inside its text.

    positives int [P, 3], distinct rows (word, k, type): word and type count in the whole batch, the span is
    word..word+k. focal_scale is a plain factor (the paper's alpha); class_balance (the public code's alpha) weighs
    positives by itself and negatives by one minus itself, None weighs both by 1. "mean" divides the sum by the number
    of (span, type) pairs, spans that leave their text not counted. Returns a scalar.
    """
    logits = span_scores(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)
    return loss_of_scores(
        logits, cu_words, cu_types, positives, max_width, focal_gamma, focal_scale, class_balance, reduction
    )


def textbook_scores(
    starts: Tensor,
    ends: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor,
    q: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The head before the fold, span vectors materialised: S = W2 . drop(relu(W1 . [start_i | end_j] + b1)) + b2.

    starts, ends [n, d], w1 [H, 2d], b1 [H], w2 [d, H], b2 [d], q [m, d] -> logits laid out as span_scores' are, with
    the same dropout mask; w1 None: the identity, with H = 2d and no b1. Stores [spans, H] and [spans, d]: this is what
    the fold is measured against.
    """
    blocks = []
    word_bounds, type_bounds = cu_words.tolist(), cu_types.tolist()
    for text in range(len(word_bounds) - 1):
        w0, w1_ = word_bounds[text], word_bounds[text + 1]
        t0, t1 = type_bounds[text], type_bounds[text + 1]
        words = w1_ - w0
        first = torch.arange(words, device=starts.device)[:, None].expand(words, max_width)
        last = first + torch.arange(max_width, device=starts.device)[None, :]
        inside = last < words
        pair = torch.cat([starts[w0:w1_][first[inside]], ends[w0:w1_][last[inside]]], dim=-1)
        hidden = torch.relu(pair if w1 is None else torch.nn.functional.linear(pair, w1, b1))
        if dropout_p > 0.0:
            rows = w0 * max_width + torch.arange(words * max_width, device=starts.device).view(words, max_width)[inside]
            keep = dropout_keep(rows, hidden.shape[1], dropout_p, seed)
            hidden = torch.where(keep, hidden / (1.0 - dropout_p), hidden.new_zeros(()))
        spans = torch.nn.functional.linear(hidden, w2, b2)
        inner = wide_product(spans, q[t0:t1])
        logits = inner.new_full((words, max_width, t1 - t0), -math.inf)
        logits[inside] = inner
        blocks.append(logits.reshape(-1))
    return torch.cat(blocks) if blocks else wide_product(starts[:0], q).flatten()


def loss_of_scores(
    logits: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float = 0.0,
    focal_scale: float = 1.0,
    class_balance: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """span_loss from logits laid out as span_scores' are; see span_loss for the arguments. Returns a scalar."""
    words, types = cu_words.diff().long(), cu_types.diff().long()
    offsets = torch.cat([words.new_zeros(1), (words * types * max_width).cumsum(0)])
    y = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    if positives.numel():
        word, k, kind = positives.long().T.contiguous()
        text = torch.searchsorted(cu_words[1:].long().contiguous(), word, right=True)
        local = (word - cu_words.long()[text]) * max_width + k
        y[offsets[text] + local * types[text] + kind - cu_types.long()[text]] = True
    inside = logits != -math.inf
    logits, y = logits[inside], y[inside]
    loss = focal_bce(torch.where(y, -logits, logits), focal_gamma)
    if class_balance is not None:
        loss = loss * torch.where(y, class_balance, 1.0 - class_balance).to(loss.dtype)
    total = loss.sum() * focal_scale
    return total / max(logits.numel(), 1) if reduction == "mean" else total
