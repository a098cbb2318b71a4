# mypy: allow-untyped-defs, disable-error-code="import-untyped"
"""Span loss: focal binary cross-entropy over every (span, type) inside its text, with the scoring inside the kernel.

    x = -logit for a positive, logit for a negative;  s = softplus(x), p = sigmoid(x)
    l = w p^gamma s          dl/dx = w p^gamma (gamma (1 - p) s + p)          g = dl/dlogit = dl/dx times dx/dlogit
    loss = focal_scale * sum l   (mean: divided by the number of (span, type) pairs inside their texts)

w is class_balance for a positive and 1 - class_balance for a negative, or 1 for both. Logits are those of
span_scores.py. Inputs: a, b [n, H], u [m, H], c [m] (fp32, fp16 or bf16). Output: loss, fp32 scalar; logits, l and g
are computed in fp32. p^gamma = exp(gamma log p) with log p = min(x, 0) - log(1 + exp(-|x|)): no cancellation at either
end.

The loss alone stores 4 bytes per program, and no logits. With gradients, g is written once in the inputs' dtype, L
elements (H / types of a text times fewer than the hidden values), and the kernels of span_scores.py compute da, db, du
and dc from it. Constant factors multiply the fp32 sums at the end, so that the mean does not scale a half-precision g
towards zero.

Positives are a sorted list of span rows; each program loops over the few in its tile.

Source: focal loss, https://arxiv.org/abs/1708.02002; docs/ARCHITECTURE.md ("The fold").
"""

import torch
import triton
import triton.language as tl
from glimodern.kernels._common import (
    TILES,
    as_int32,
    dropout_key,
    logit_tile,
    text_frame,
    text_of,
)
from glimodern.kernels.span_scores import span_scores_backward
from torch import Tensor

from glimodern.reference import dropout_threshold, logit_offsets, pairs_inside


@triton.jit
def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1 to fp32's relative precision: 2 artanh(e / (2 + e)) by 8 terms of its series.

    The first omitted term is below 2e-9 of the sum. The hardware's logarithm has an absolute error of 2^-22 near 1, as
    large as a confident span's whole loss.
    """
    z = e / (2.0 + e)
    y = z * z
    series = 1.0 / 13 + y * (1.0 / 15)
    series = 1.0 / 9 + y * (1.0 / 11 + y * series)
    series = 1.0 / 5 + y * (1.0 / 7 + y * series)
    return 2.0 * z * (1.0 + y * (1.0 / 3 + y * series))


@triton.jit(do_not_specialize=["words", "texts", "seed"])
def loss_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    u_ptr,  # [m, H]
    c_ptr,  # [m]
    cu_words_ptr,  # [texts + 1]
    cu_types_ptr,  # [texts + 1]
    offset_ptr,  # int64 [texts + 1]
    positive_row_ptr,  # int64 [P] i * K + k, ascending
    positive_type_ptr,  # [P]
    positive_begin_ptr,  # int64 [row tiles + 1] each tile's first positive
    grad_ptr,  # [L] if GRADS, otherwise not used
    loss_ptr,  # fp32 [row tiles, type splits]
    words,
    texts,
    hidden,
    seed,
    scale,
    gamma,
    positive_weight,
    negative_weight,
    FOCAL: tl.constexpr,
    GRADS: tl.constexpr,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """Loss of ROWS spans with every `splits`-th tile of their texts' types. Grid (row tiles, type splits)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    word0 = row0 // WIDTH
    row = tl.arange(0, ROWS)
    span = (row0 % WIDTH).to(tl.int32) + row
    start = span // WIDTH
    end = start + span % WIDTH
    key = dropout_key(row0 + row, seed)
    positive_begin = tl.load(positive_begin_ptr + tl.program_id(0))
    positive_end = tl.load(positive_begin_ptr + tl.program_id(0) + 1)
    cell = row[:, None] * TYPES + tl.arange(0, TYPES)[None, :]
    total = tl.zeros((ROWS, TYPES), tl.float32)
    last_word = tl.minimum((row0 + ROWS - 1) // WIDTH, words - 1)
    for text in range(text_of(cu_words_ptr, word0, texts), text_of(cu_words_ptr, last_word, texts) + 1):
        first_word, begin, stop, first_type, types = text_frame(cu_words_ptr, cu_types_ptr, text, word0)
        inside = (start >= begin) & (end < stop)
        for first in range(tl.program_id(1) * TYPES, types, tl.num_programs(1) * TYPES):
            logits = logit_tile(
                a_ptr + word0 * hidden, b_ptr + word0 * hidden, u_ptr + (first_type + first) * hidden,
                c_ptr + first_type + first, start, end, inside, key, types - first, hidden, scale,
                THRESHOLD, ROWS, HIDDEN, TYPES,
            )  # fmt: skip
            y = tl.zeros((ROWS, TYPES), tl.float32)
            for p in range(positive_begin, positive_end):
                type_id = tl.load(positive_type_ptr + p).to(tl.int64) - first_type - first
                target = (tl.load(positive_row_ptr + p) - row0) * TYPES + type_id
                target = tl.where((type_id >= 0) & (type_id < TYPES), target, -1).to(tl.int32)
                y = tl.where(cell == target, 1.0, y)
            sign = 1.0 - 2.0 * y
            x = sign * logits
            e = tl.exp(-tl.abs(x))
            log1p_e = log1p_unit(e)
            softplus = tl.maximum(x, 0.0) + log1p_e
            weight = negative_weight + y * (positive_weight - negative_weight)
            if FOCAL:
                weight *= tl.exp(gamma * (tl.minimum(x, 0.0) - log1p_e))
            type_id = (first + tl.arange(0, TYPES))[None, :]
            valid = inside[:, None] & (type_id < types)
            total += tl.where(valid, weight * softplus, 0.0)
            if GRADS:
                p_max, p_min = 1.0 / (1.0 + e), e / (1.0 + e)  # sigmoid(|x|), sigmoid(-|x|)
                grad = tl.where(x >= 0.0, p_max, p_min)
                if FOCAL:
                    grad += gamma * tl.where(x >= 0.0, p_min, p_max) * softplus
                grad = grad * weight * sign
                tile0 = tl.load(offset_ptr + text) + (row0 - first_word * WIDTH) * types
                tl.store(grad_ptr + tile0 + (row * types)[:, None] + type_id, grad, mask=valid)
    tl.store(loss_ptr + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1), tl.sum(total))


def span_loss_forward(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    positives: Tensor,
    max_width: int,
    focal_gamma: float,
    focal_scale: float,
    class_balance: float | None,
    mean: bool,
    dropout_p: float,
    seed: int,
    compute_grads: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(loss, da, db, du, dc): the fp32 scalar loss and, if compute_grads, its gradients in the inputs' dtypes.

    positives: int [P, 3], rows (word, k, type), word and type counted in the batch, in any order. Waits for the device
    once with gradients, to read L, the size of g, and never without. In fp16 the gradients of a mean over many pairs
    are subnormal: take the sum, a larger focal_scale, or bf16.
    """
    a, b, u, c = a.contiguous(), b.contiguous(), u.contiguous(), c.contiguous()
    texts, (words, hidden) = len(cu_words) - 1, a.shape
    if not (words and len(u)):
        loss = a.new_zeros((), dtype=torch.float32)
        if not compute_grads:
            return loss, None, None, None, None
        return loss, torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(u), torch.zeros_like(c)
    types = TILES.types(len(u), texts)
    row_tiles = triton.cdiv(words * max_width, TILES.rows)
    grid = (row_tiles, TILES.splits(row_tiles, triton.cdiv(len(u), types)))
    offsets = logit_offsets(cu_words, cu_types, max_width)
    grad = a.new_empty(int(offsets[-1]) if compute_grads else 0)
    rows, order = (positives[:, 0].long() * max_width + positives[:, 1]).sort()
    begins = torch.searchsorted(rows, torch.arange(row_tiles + 1, device=a.device) * TILES.rows)
    balance = (1.0, 1.0) if class_balance is None else (class_balance, 1.0 - class_balance)
    losses = a.new_empty(grid, dtype=torch.float32)
    with torch.cuda.device_of(a):
        loss_kernel[grid](
            a, b, u, c, cu_words, cu_types, offsets, rows, positives[order, 2], begins, grad, losses,
            words, texts, hidden, as_int32(seed), 1.0 / (1.0 - dropout_p), float(focal_gamma), *balance,
            FOCAL=focal_gamma != 0.0, GRADS=compute_grads, WIDTH=max_width, THRESHOLD=dropout_threshold(dropout_p),
            ROWS=TILES.rows, HIDDEN=TILES.hidden, TYPES=types,
            num_warps=TILES.warps(types), num_stages=TILES.stages(a.dtype),
        )  # fmt: skip
    factor = a.new_full((1,), focal_scale, dtype=torch.float32)
    if mean:
        factor = factor / pairs_inside(cu_words, cu_types, max_width).clamp(min=1)
    loss = (losses.sum() * factor)[0]
    if not compute_grads:
        return loss, None, None, None, None
    return loss, *span_scores_backward(grad, a, b, u, cu_words, cu_types, max_width, dropout_p, seed, factor)
