# mypy: allow-untyped-defs, disable-error-code="import-untyped"
"""Span scores: logit(i, k, t) = drop(relu(a_i + b_{i+k})) . u_t + c_t, for a span i..i+k and a type t of one text.

Inputs: a, b [n, H], u [m, H], c [m] (fp32, fp16 or bf16, all the same; fp32 accumulators). Output: logits fp32 [L],
ragged by text: blocks [words, K, types], row-major; -inf for a span that leaves its text.

Backward, from g = dL/dlogit:
    da_i = sum over k, t of g(i,k,t) u_t [a_i + b_{i+k} > 0] keep / (1 - p)       db_j: the same over i = j - k
    du_t = sum over i, k of g(i,k,t) drop(relu(a_i + b_{i+k}))                    dc_t = sum over i, k of g(i,k,t)

Both passes hold the hidden values [n, K, H] one tile at a time, in registers. Stored for the backward pass, those of a
bf16 batch of 2,590 words with K = 12 and H = 3,072 would take 191 MB. One program sums each output element in a fixed
order (du, dc: a few programs into partial sums, added in order), so two runs agree bit for bit.

Source: docs/ARCHITECTURE.md ("The fold"); the dropout mask is glimodern.reference.dropout_keep.
"""

import torch
import triton
import triton.language as tl
from glimodern.kernels._common import (
    TILES,
    as_int32,
    dropout_keep,
    dropout_key,
    hidden_tile,
    logit_tile,
    no_spills,
    positive_sum,
    product,
    text_frame,
    text_of,
)
from torch import Tensor

from glimodern.reference import dropout_threshold, logit_offsets


@triton.jit(do_not_specialize=["words", "texts", "seed"])
def scores_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    u_ptr,  # [m, H]
    c_ptr,  # [m]
    cu_words_ptr,  # [texts + 1]
    cu_types_ptr,  # [texts + 1]
    offset_ptr,  # int64 [texts + 1]
    logit_ptr,  # fp32 [L]
    words,
    texts,
    hidden,
    seed,
    scale,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """Logits of ROWS spans with every `splits`-th tile of their texts' types. Grid (row tiles, type splits)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    word0 = row0 // WIDTH
    row = tl.arange(0, ROWS)
    span = (row0 % WIDTH).to(tl.int32) + row
    start = span // WIDTH
    end = start + span % WIDTH
    key = dropout_key(row0 + row, seed)
    last_word = tl.minimum((row0 + ROWS - 1) // WIDTH, words - 1)
    for text in range(text_of(cu_words_ptr, word0, texts), text_of(cu_words_ptr, last_word, texts) + 1):
        first_word, begin, stop, first_type, types = text_frame(cu_words_ptr, cu_types_ptr, text, word0)
        own = (start >= begin) & (start < stop)
        inside = own & (end < stop)
        tile_ptr = logit_ptr + tl.load(offset_ptr + text) + (row0 - first_word * WIDTH) * types
        for first in range(tl.program_id(1) * TYPES, types, tl.num_programs(1) * TYPES):
            logits = logit_tile(
                a_ptr + word0 * hidden, b_ptr + word0 * hidden, u_ptr + (first_type + first) * hidden,
                c_ptr + first_type + first, start, end, inside, key, types - first, hidden, scale,
                THRESHOLD, ROWS, HIDDEN, TYPES,
            )  # fmt: skip
            logits = tl.where(inside[:, None], logits, float("-inf"))
            type_id = (first + tl.arange(0, TYPES))[None, :]
            tl.store(tile_ptr + (row * types)[:, None] + type_id, logits, mask=own[:, None] & (type_id < types))


@triton.jit(do_not_specialize=["words", "texts", "seed"])
def word_grads_kernel(
    grad_ptr,  # [L] g, the logits' gradient, up to a factor
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    u_ptr,  # [m, H]
    cu_words_ptr,  # [texts + 1]
    cu_types_ptr,  # [texts + 1]
    offset_ptr,  # int64 [texts + 1]
    factor_ptr,  # fp32 [1] that factor
    out_ptr,  # [n, H] da, or db if ENDS
    words,
    texts,
    hidden,
    seed,
    scale,
    ENDS: tl.constexpr,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WORDS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """da or db of WORDS words, the starts (da) or ends (db) of their spans. Grid (word tiles, column tiles)."""
    word0 = tl.program_id(0).to(tl.int64) * WORDS
    word = tl.arange(0, WORDS)
    column = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    in_row = (column < hidden)[None, :]
    tile = word[:, None] * hidden + column[None, :]
    in_tile = (word < words - word0)[:, None] & in_row
    own_ptr = b_ptr if ENDS else a_ptr
    other_ptr = a_ptr if ENDS else b_ptr
    own = tl.load(own_ptr + word0 * hidden + tile, mask=in_tile, other=0.0)
    total = tl.zeros((WORDS, HIDDEN), tl.float32)
    last_word = tl.minimum(word0 + WORDS, words) - 1
    for text in range(text_of(cu_words_ptr, word0, texts), text_of(cu_words_ptr, last_word, texts) + 1):
        first_word, begin, stop, first_type, types = text_frame(cu_words_ptr, cu_types_ptr, text, word0)
        text_grad_ptr = grad_ptr + tl.load(offset_ptr + text) - first_word * WIDTH * types
        for first in range(0, types, TYPES):
            type_id = first + tl.arange(0, TYPES)
            live = type_id < types
            u_tile = (tl.arange(0, TYPES) * hidden)[:, None] + column[None, :]
            u = tl.load(u_ptr + (first_type + first) * hidden + u_tile, mask=live[:, None] & in_row, other=0.0)
            offset = (word * WIDTH * types)[:, None] + type_id[None, :]
            for k in range(0, WIDTH):
                shift = -k if ENDS else k
                row0 = (word0 - k if ENDS else word0) * WIDTH + k
                other = word + shift
                inside = (word >= begin) & (word < stop) & (other >= begin) & (other < stop)
                grad = tl.load(text_grad_ptr + row0 * types + offset, mask=inside[:, None] & live[None, :], other=0.0)
                x = tl.load(other_ptr + (word0 + shift) * hidden + tile, mask=inside[:, None] & in_row, other=0.0)
                passes = positive_sum(own, x)
                if THRESHOLD > 0:
                    passes &= dropout_keep(dropout_key(row0 + word * WIDTH, seed), column, THRESHOLD)
                total += tl.where(passes, product(grad, u, tl.zeros((WORDS, HIDDEN), tl.float32)), 0.0)
    total *= tl.load(factor_ptr) * scale
    tl.store(out_ptr + word0 * hidden + tile, total, mask=in_tile)


@triton.jit(do_not_specialize=["seed"])
def type_grads_kernel(
    grad_ptr,  # [L] g, the logits' gradient, up to a factor
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    cu_words_ptr,  # [texts + 1]
    cu_types_ptr,  # [texts + 1]
    offset_ptr,  # int64 [texts + 1]
    factor_ptr,  # fp32 [1] that factor
    du_ptr,  # fp32 [row splits, m, H]
    dc_ptr,  # fp32 [row splits, m]
    types_all,
    hidden,
    type_splits,
    row_splits,
    seed,
    scale,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """du and dc of one text's types over a share of its spans. Grid (texts, column tiles, row splits * type splits)."""
    text = tl.program_id(0)
    column = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    row_split = tl.program_id(2) // type_splits
    first_word = tl.load(cu_words_ptr + text).to(tl.int64)
    text_words = tl.load(cu_words_ptr + text + 1) - first_word
    first_type = tl.load(cu_types_ptr + text).to(tl.int64)
    types = (tl.load(cu_types_ptr + text + 1) - first_type).to(tl.int32)
    text_grad_ptr = grad_ptr + tl.load(offset_ptr + text)
    factor = tl.load(factor_ptr)
    text_rows = text_words * WIDTH
    share = tl.cdiv(text_rows, row_splits * ROWS) * ROWS
    row_begin = row_split * share
    row_end = tl.minimum(row_begin + share, text_rows)
    row = tl.arange(0, ROWS)
    for first in range((tl.program_id(2) % type_splits) * TYPES, types, type_splits * TYPES):
        type_id = first + tl.arange(0, TYPES)
        live = type_id < types
        du = tl.zeros((TYPES, HIDDEN), tl.float32)
        dc = tl.zeros((TYPES,), tl.float32)
        for step in range(tl.cdiv(row_end - row_begin, ROWS)):
            row0 = row_begin + step * ROWS
            word0 = row0 // WIDTH
            span = (row0 % WIDTH).to(tl.int32) + row
            start = span // WIDTH
            end = start + span % WIDTH
            inside = (row < row_end - row0) & (end < text_words - word0)
            key = dropout_key(first_word * WIDTH + row0 + row, seed)
            tile0 = (first_word + word0) * hidden
            x = hidden_tile(a_ptr + tile0, b_ptr + tile0, start, end, inside, key, column, hidden, THRESHOLD)
            grad_tile = (row * types)[None, :] + type_id[:, None]
            grad = tl.load(text_grad_ptr + row0 * types + grad_tile, mask=inside[None, :] & live[:, None], other=0.0)
            du = product(grad, x, du)
            dc += tl.sum(grad.to(tl.float32), 1)
        offset = row_split.to(tl.int64) * types_all + first_type + type_id
        du_mask = live[:, None] & (column < hidden)[None, :]
        tl.store(du_ptr + offset[:, None] * hidden + column[None, :], du * (factor * scale), mask=du_mask)
        if tl.program_id(1) == 0:
            tl.store(dc_ptr + offset, dc * factor, mask=live)


def span_scores_forward(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    """Logits fp32 [L]. Waits for the device once, to read L, which cu_words and cu_types determine."""
    a, b, u, c = a.contiguous(), b.contiguous(), u.contiguous(), c.contiguous()
    texts, hidden = len(cu_words) - 1, a.shape[1]
    offsets = logit_offsets(cu_words, cu_types, max_width)
    logits = a.new_empty(int(offsets[-1]), dtype=torch.float32)
    if not logits.numel():
        return logits
    types = TILES.types(len(u), texts)
    row_tiles = triton.cdiv(len(a) * max_width, TILES.rows)
    grid = (row_tiles, TILES.splits(row_tiles, triton.cdiv(len(u), types)))
    with torch.cuda.device_of(a):
        scores_kernel[grid](
            a, b, u, c, cu_words, cu_types, offsets, logits, len(a), texts, hidden, as_int32(seed),
            1.0 / (1.0 - dropout_p),
            WIDTH=max_width, THRESHOLD=dropout_threshold(dropout_p), ROWS=TILES.rows, HIDDEN=TILES.hidden, TYPES=types,
            num_warps=TILES.score_warps, num_stages=TILES.stages(a.dtype),
        )  # fmt: skip
    return logits


def span_scores_backward(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
    factor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(da, db, du, dc) in the inputs' dtypes, from grad_logits [L]; entries outside the texts are not read.

    grad_logits is rounded to a's dtype, as the tensor cores multiply it with u and with the hidden values. factor fp32
    [1] multiplies all four before they are rounded (None: 1). Never waits for the device. Allocates du's partial sums,
    fp32 [splits, m, H], meanwhile: one split, unless the batch is too small to fill the device with one.
    """
    a, b, u, grad_logits = a.contiguous(), b.contiguous(), u.contiguous(), grad_logits.to(a.dtype).contiguous()
    texts, (words, hidden) = len(cu_words) - 1, a.shape
    if not grad_logits.numel():
        return torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(u), u.new_zeros(len(u))
    factor = a.new_ones(1, dtype=torch.float32) if factor is None else factor
    offsets = logit_offsets(cu_words, cu_types, max_width)
    types = TILES.types(len(u), texts)
    scale, threshold = 1.0 / (1.0 - dropout_p), dropout_threshold(dropout_p)
    da, db = torch.empty_like(a), torch.empty_like(b)
    rows = TILES.type_rows(a.dtype, types)
    column_tiles = triton.cdiv(hidden, TILES.hidden)
    type_splits = TILES.splits(texts * column_tiles, triton.cdiv(len(u), types))
    row_splits = TILES.splits(texts * column_tiles * type_splits, triton.cdiv(words * max_width, rows))
    du = a.new_empty((row_splits, len(u), hidden), dtype=torch.float32)
    dc = a.new_empty((row_splits, len(u)), dtype=torch.float32)
    with torch.cuda.device_of(a):
        for ends, out in ((False, da), (True, db)):
            word_grads_kernel[triton.cdiv(words, TILES.words), triton.cdiv(hidden, TILES.columns)](
                grad_logits, a, b, u, cu_words, cu_types, offsets, factor, out, words, texts, hidden, as_int32(seed),
                scale,
                ENDS=ends, WIDTH=max_width, THRESHOLD=threshold, WORDS=TILES.words, HIDDEN=TILES.columns, TYPES=types,
                num_warps=TILES.word_warps, num_stages=TILES.word_stages(a.dtype), **no_spills(),
            )  # fmt: skip
        type_grads_kernel[texts, column_tiles, row_splits * type_splits](
            grad_logits, a, b, cu_words, cu_types, offsets, factor, du, dc, len(u), hidden, type_splits, row_splits,
            as_int32(seed), scale,
            WIDTH=max_width, THRESHOLD=threshold, ROWS=rows, HIDDEN=TILES.hidden, TYPES=types,
            num_warps=TILES.warps(types), num_stages=TILES.stages(a.dtype),
        )  # fmt: skip
    return da, db, du.sum(0).to(u.dtype), dc.sum(0).to(u.dtype)
