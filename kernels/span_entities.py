# mypy: allow-untyped-defs, disable-error-code="import-untyped"
"""Span entities: the spans i..i+k and types t of one text with logit(i, k, t) above the bound of t.

    logit(i, k, t) = relu(a_i + b_{i+k}) . u_t + c_t

Inputs: a, b [n, H], u [m, H], c [m] (fp32, fp16 or bf16, all the same; fp32 accumulators), bounds fp32 [m]. Outputs:
word, width, type int64 [count], logit fp32 [count], ordered by (word, width, type). Forward only.

One kernel runs twice. The first pass counts candidates, span by span; prefix sums of the counts are the candidates'
offsets. The second pass computes the logits of tiles with candidates again (the same bits) and writes. Only the
candidates' logits are stored, no two programs write one element, and there are no atomics: the order is that of the
spans. The second pass costs little where entities are rare: a tile of 64 spans without a candidate returns at once.

Source: docs/ARCHITECTURE.md ("The fold"); count, sum and write is stream compaction as in Blelloch's "Prefix Sums and
Their Applications" (https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf).
"""

import torch
import triton
import triton.language as tl
from glimodern.kernels._common import TILES, logit_tile, text_frame, text_of
from torch import Tensor


@triton.jit(do_not_specialize=["words", "texts"])  # else compiled again for batches of one text, or of 16
def entities_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    u_ptr,  # [m, H]
    c_ptr,  # [m]
    bound_ptr,  # fp32 [m]
    cu_words_ptr,  # [texts + 1]
    cu_types_ptr,  # [texts + 1]
    count_ptr,  # int32 [n * K, splits] candidates of a span among a split's types: written, or read if WRITE
    offset_ptr,  # int64 [n * K, splits] the index of the first of them (WRITE)
    span_ptr,  # int64 [count] the span's index i * K + k (WRITE)
    type_ptr,  # int64 [count] (WRITE)
    logit_ptr,  # fp32 [count] (WRITE)
    words,
    texts,
    hidden,
    WRITE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TYPES: tl.constexpr,
):
    """Count or write the candidates of ROWS spans among a range of types. Grid (row tiles, type splits)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    word0 = row0 // WIDTH
    row = tl.arange(0, ROWS)
    span = (row0 % WIDTH).to(tl.int32) + row
    start = span // WIDTH
    end = start + span % WIDTH
    split, splits = tl.program_id(1), tl.num_programs(1)
    cell = (row0 + row) * splits + split
    exists = start < words - word0
    first_text = text_of(cu_words_ptr, word0, texts)
    stop_text = text_of(cu_words_ptr, tl.minimum((row0 + ROWS - 1) // WIDTH, words - 1), texts) + 1
    base = tl.full((), 0, tl.int64)
    offset = tl.zeros((ROWS,), tl.int32)
    if WRITE:
        expected = tl.sum(tl.load(count_ptr + cell, mask=exists, other=0))
        stop_text = tl.where(expected > 0, stop_text, first_text)
        base = tl.load(offset_ptr + row0 * splits + split)
        offset = (tl.load(offset_ptr + cell, mask=exists, other=0) - base).to(tl.int32)
    count = tl.zeros((ROWS,), tl.int32)
    for text in range(first_text, stop_text):
        _, begin, stop, first_type, types = text_frame(cu_words_ptr, cu_types_ptr, text, word0)
        inside = (start >= begin) & (end < stop)
        share = tl.cdiv(types, splits * TYPES) * TYPES
        for first in range(split * share, tl.minimum(split * share + share, types), TYPES):
            logits = logit_tile(
                a_ptr + word0 * hidden, b_ptr + word0 * hidden, u_ptr + (first_type + first) * hidden,
                c_ptr + first_type + first, start, end, inside, row, types - first, hidden, 1.0,
                0, ROWS, HIDDEN, TYPES,
            )  # fmt: skip
            type_id = first + tl.arange(0, TYPES)
            live = type_id < types
            bound = tl.load(bound_ptr + first_type + type_id, mask=live, other=0.0)[None, :]
            passed = (logits > bound) | (logits != logits)  # a NaN passes
            hit = (passed & inside[:, None] & live[None, :]).to(tl.int32)
            if WRITE:
                target = (offset + count)[:, None] + tl.cumsum(hit, 1) - 1
                tl.store(span_ptr + base + target, (row0 + row)[:, None] + tl.zeros_like(target), mask=hit > 0)
                batch_type = (first_type + type_id)[None, :] + tl.zeros_like(target)
                tl.store(type_ptr + base + target, batch_type, mask=hit > 0)
                tl.store(logit_ptr + base + target, logits, mask=hit > 0)
            count += tl.sum(hit, 1)
    if not WRITE:
        tl.store(count_ptr + cell, count, mask=exists)


def entities_pass(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    bounds: Tensor,
    max_width: int,
    counts: Tensor,
    offsets: Tensor | None,
    columns: tuple[Tensor, ...],
) -> None:
    """Run one pass: fill counts int32 [n * K, splits]; or, given offsets int64 like counts, fill columns.

    columns: the spans' indices i * K + k and types, int64, and logits, fp32, of the candidates.
    """
    texts, (words, hidden) = len(cu_words) - 1, a.shape
    types = TILES.types(len(u), texts)
    with torch.cuda.device_of(a):
        entities_kernel[triton.cdiv(words * max_width, TILES.rows), counts.shape[1]](
            a, b, u, c, bounds, cu_words, cu_types, counts, columns[0] if offsets is None else offsets, *columns, words,
            texts, hidden,
            WRITE=offsets is not None, WIDTH=max_width, ROWS=TILES.rows, HIDDEN=TILES.hidden, TYPES=types,
            num_warps=TILES.warps(types), num_stages=TILES.stages(a.dtype),
        )  # fmt: skip


def span_entities_forward(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    bounds: Tensor,
    max_width: int,
) -> tuple[Tensor, ...]:
    """(word, width, type, logit) of the candidates. Waits for the device once, to read their number.

    Allocates 12 bytes per span and split of its types meanwhile (one split, unless the batch is small).
    """
    a, b, u, c, bounds = (x.contiguous() for x in (a, b, u, c, bounds))
    spans = len(a) * max_width

    def empty_columns(count: int) -> tuple[Tensor, ...]:
        integers = (torch.empty(count, dtype=torch.int64, device=a.device) for _ in range(2))
        return *integers, torch.empty(count, dtype=torch.float32, device=a.device)

    columns = empty_columns(0)
    if not (spans and len(u)):
        return columns[0], *columns
    types = TILES.types(len(u), len(cu_words) - 1)
    splits = TILES.splits(triton.cdiv(spans, TILES.rows), triton.cdiv(len(u), types))
    counts = torch.empty((spans, splits), dtype=torch.int32, device=a.device)
    batch = (a, b, u, c, cu_words, cu_types, bounds, max_width, counts)
    entities_pass(*batch, None, columns)
    ends = counts.view(-1).cumsum(0)
    columns = empty_columns(int(ends[-1]))
    if len(columns[0]):
        entities_pass(*batch, (ends - counts.view(-1)).view_as(counts), columns)
    span, type_id, logit = columns
    return span // max_width, span % max_width, type_id, logit
