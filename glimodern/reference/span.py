"""The oracles of span_scores and span_loss, and what the span oracles share.

Symbols: n words and m entity types in the packed batch, H the hidden width of the span head, K = max_width.

    logit(i, k, t) = drop(relu(a_i + b_{i+k})) . u_t + c_t      for i and i+k inside one text, t a type of that text

Logits are fp32, and fp64 for fp64 inputs: rounded to bf16 they lie 0.016 apart near 3, and spans tie.
"""

import math

import torch
from torch import Tensor

from .dropout import dropout, dropout_keep


def fp32_product(x: Tensor, y: Tensor) -> Tensor:
    """x y^T [s, m] for x [s, d] and y [m, d], summed and returned in fp32 (fp64 for fp64), under autocast too."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ y.to(dtype).T


def span_ends(words: int, max_width: int, device: torch.device) -> Tensor:
    """int64 [words, K]: the last word i + k of span (i, k) of one text, also where it leaves the text."""
    return torch.arange(words, device=device)[:, None] + torch.arange(max_width, device=device)[None, :]


def span_hidden(a: Tensor, b: Tensor, max_width: int, first_word: int, dropout_p: float, seed: int) -> Tensor:
    """drop(relu(a_i + b_{i+k})) of one text: a, b [w, H] -> [w, K, H]; zero where i+k leaves the text."""
    words = len(a)
    ends = span_ends(words, max_width, a.device)
    x = torch.relu(a[:, None, :] + b[ends.clamp(max=max(words - 1, 0))])
    x = torch.where((ends < words)[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    if dropout_p > 0.0:
        x = dropout(x, dropout_p, seed, first_word * max_width)
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

    a, b: [n, H]. u: [m, H]. c: [m]. cu_words, cu_types: int [texts + 1].

    Returns fp32 or fp64 [sum over texts of words * K * types]: text after text, each block row-major [words, K, types].
    A span that leaves its text has the logit -inf (probability 0) and no gradient.
    """
    blocks = []
    words, types = cu_words.tolist(), cu_types.tolist()
    for w0, w1, t0, t1 in zip(words, words[1:], types, types[1:], strict=False):
        x = span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)
        logits = fp32_product(x.flatten(0, 1), u[t0:t1]).unflatten(0, x.shape[:2]) + c[t0:t1]
        outside = (span_ends(w1 - w0, max_width, a.device) >= w1 - w0)[..., None].expand_as(logits)
        blocks.append(logits.masked_fill(outside, -math.inf).reshape(-1))
    return torch.cat(blocks) if blocks else fp32_product(a[:0], u).flatten()


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
    """Logits of the head before the fold: S = W2 . drop(relu(W1 . [start_i | end_j] + b1)) + b2, then S . q_t.

    starts, ends: [n, d]. w1: [H, 2d], b1: [H]; None: the identity, with H = 2d and no b1. w2: [d, H]. b2: [d].
    q: [m, d].

    Returns the layout of span_scores, with the same dropout mask. Stores [spans, H] and [spans, d], which the fold
    avoids.
    """
    blocks = []
    words, types = cu_words.tolist(), cu_types.tolist()
    for first, last, t0, t1 in zip(words, words[1:], types, types[1:], strict=False):
        length = last - first
        end = span_ends(length, max_width, starts.device)
        start = torch.arange(length, device=starts.device)[:, None].expand_as(end)
        inside = end < length
        pair = torch.cat([starts[first:last][start[inside]], ends[first:last][end[inside]]], dim=-1)
        hidden = torch.relu(pair if w1 is None else torch.nn.functional.linear(pair, w1, b1))
        if dropout_p > 0.0:
            rows = first * max_width + torch.arange(end.numel(), device=starts.device).view_as(end)[inside]
            keep = dropout_keep(rows, hidden.shape[1], dropout_p, seed)
            hidden = torch.where(keep, hidden / (1.0 - dropout_p), hidden.new_zeros(()))
        spans = torch.nn.functional.linear(hidden, w2, b2)
        inner = fp32_product(spans, q[t0:t1])
        logits = inner.new_full((length, max_width, t1 - t0), -math.inf)
        logits[inside] = inner
        blocks.append(logits.reshape(-1))
    return torch.cat(blocks) if blocks else fp32_product(starts[:0], q).flatten()


def logit_offsets(cu_words: Tensor, cu_types: Tensor, max_width: int) -> Tensor:
    """int64 [texts + 1] on the same device: where each text's block of logits [words, K, types] starts, and the end."""
    sizes = cu_words.diff().long() * cu_types.diff() * max_width
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def pairs_inside(cu_words: Tensor, cu_types: Tensor, max_width: int) -> Tensor:
    """Number of (span, type) pairs inside their texts: int64 scalar on the same device."""
    words = cu_words.diff().long()
    widths = words.clamp(max=max_width)
    return ((words * widths - widths * (widths - 1) // 2) * cu_types.diff()).sum()


def positive_mask(logits: Tensor, cu_words: Tensor, cu_types: Tensor, positives: Tensor, max_width: int) -> Tensor:
    """bool like logits, laid out as span_scores' are: True for positives int [P, 3], rows (word, k, type)."""
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    if positives.numel():
        word, k, type_id = positives.long().T.contiguous()
        text = torch.searchsorted(cu_words[1:].long().contiguous(), word, right=True)
        row = (word - cu_words.long()[text]) * max_width + k
        column = type_id - cu_types.long()[text]
        mask[logit_offsets(cu_words, cu_types, max_width)[text] + row * cu_types.diff().long()[text] + column] = True
    return mask


def focal_bce(x: Tensor, focal_gamma: float) -> Tensor:
    """sigmoid(x)^gamma * softplus(x), elementwise, with x = logit for a negative and -logit for a positive.

    This is (1 - p_t)^gamma * -log(p_t) of the focal loss (https://arxiv.org/abs/1708.02002), without cancellation.
    """
    loss = torch.nn.functional.softplus(x, threshold=50.0)
    return loss if focal_gamma == 0.0 else torch.sigmoid(x) ** focal_gamma * loss


def focal_bce_grad(x: Tensor, focal_gamma: float) -> Tensor:
    """d focal_bce / dx = p^gamma * (gamma * (1 - p) * softplus(x) + p), elementwise, with p = sigmoid(x)."""
    p = torch.sigmoid(x)
    return p if focal_gamma == 0.0 else p**focal_gamma * (focal_gamma * torch.sigmoid(-x) * focal_bce(x, 0.0) + p)


def focal_sum(
    logits: Tensor, positive: Tensor, focal_gamma: float, focal_scale: float, class_balance: float | None
) -> Tensor:
    """The sum of the focal cross-entropies of logits, whose targets are bool of the same shape: a scalar."""
    loss = focal_bce(torch.where(positive, -logits, logits), focal_gamma)
    if class_balance is not None:
        loss = loss * torch.where(positive, class_balance, 1.0 - class_balance).to(loss.dtype)
    return loss.sum() * focal_scale


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
    """span_loss from logits laid out as span_scores' are: a scalar. The arguments are those of span_loss."""
    positive = positive_mask(logits, cu_words, cu_types, positives, max_width)
    inside = logits != -math.inf
    logits, positive = logits[inside], positive[inside]
    total = focal_sum(logits, positive, focal_gamma, focal_scale, class_balance)
    return total / max(logits.numel(), 1) if reduction == "mean" else total


def loss_gradient(
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
    """d loss_of_scores / d logits, like logits; zero for spans that leave their text. Arguments as in span_loss."""
    positive = positive_mask(logits, cu_words, cu_types, positives, max_width)
    grad = focal_bce_grad(torch.where(positive, -logits, logits), focal_gamma)
    if class_balance is not None:
        grad = grad * torch.where(positive, class_balance, 1.0 - class_balance).to(grad.dtype)
    grad = torch.where(positive, -grad, grad) * focal_scale
    return grad / pairs_inside(cu_words, cu_types, max_width).clamp(min=1) if reduction == "mean" else grad


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
    """Focal binary cross-entropy over every (span, type) inside its text: a scalar.

    positives: int [P, 3], distinct rows (word, k, type), word and type counted in the whole batch, for the span
        word..word+k.
    focal_scale: a factor (the paper's alpha). class_balance (the public code's alpha) weighs positives, and
        1 - class_balance negatives; None weighs both by 1.
    reduction: "sum", or "mean" over the (span, type) pairs inside their texts.
    """
    logits = span_scores(a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed)
    return loss_of_scores(
        logits, cu_words, cu_types, positives, max_width, focal_gamma, focal_scale, class_balance, reduction
    )
