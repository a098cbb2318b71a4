# mypy: allow-untyped-defs, disable-error-code="import-untyped"
"""Span vectors: S(r) = x(r) W2^T + b2, x(r) = drop(relu(a_start + b_end)), for rows r of spans; zero where end < 0.

Inputs: a, b [n, H], w2 [d, H], b2 [d] (fp32, fp16 or bf16, all the same; fp32 accumulators), start, end int32 [R];
dropout as glimodern.reference.dropout_keep with the span's index start * K + end - start. Output: S [R, d] in the same
dtype.

Forward is one kernel: it holds the hidden values one tile at a time, in registers, on their way into the tensor cores.
Backward, from G = dL/dS, works on a tile of rows at a time (glimodern/ops/_span_vectors.py). Its two products are the
matrix library's; the kernels here compute x again and add dx = G W2 to the words' gradients:

    dW2 = G^T x     db2 = sum of G     da_i = sum over rows with start i of dx [x > 0] / (1 - p)     db_j: over end j

One program sums each word's gradient, over its rows in order: no atomics, two runs agree bit for bit.
"""

import torch
import triton
import triton.language as tl
from glimodern.kernels._common import TILES, as_int32, dropout_key, hidden_tile, logit_tile
from torch import Tensor

from glimodern.reference import dropout_threshold

# Columns of S per program of the forward, for which the hidden values are computed once. Twice as many would leave room
# for one program per multiprocessor (150 to 190 registers per thread, of 256 threads).
_COLUMNS = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
_WORD_COLUMNS = 256  # columns of da or db per program


@triton.jit(do_not_specialize=["rows", "seed"])
def vectors_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    w2_ptr,  # [d, H]
    b2_ptr,  # [d]
    start_ptr,  # int32 [R]
    end_ptr,  # int32 [R]
    out_ptr,  # [R, d]
    rows,
    hidden,
    width,
    seed,
    scale,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """COLUMNS columns of the vectors of ROWS spans. Grid (row tiles, column tiles)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    column0 = tl.program_id(1) * COLUMNS
    row = tl.arange(0, ROWS)
    exists = row < rows - row0
    start = tl.load(start_ptr + row0 + row, mask=exists, other=0).to(tl.int64)
    end = tl.load(end_ptr + row0 + row, mask=exists, other=-1).to(tl.int64)
    inside = end >= 0
    key = dropout_key(start * WIDTH + end - start, seed)
    vectors = logit_tile(
        a_ptr, b_ptr, w2_ptr + column0.to(tl.int64) * hidden, b2_ptr + column0, start, end, inside, key,
        width - column0, hidden, scale, THRESHOLD, ROWS, HIDDEN, COLUMNS,
    )  # fmt: skip
    column = column0 + tl.arange(0, COLUMNS)
    offset = (row * width)[:, None] + column[None, :]
    vectors = tl.where(inside[:, None], vectors, 0.0)
    tl.store(out_ptr + row0 * width + offset, vectors, mask=exists[:, None] & (column < width)[None, :])


@triton.jit(do_not_specialize=["rows", "seed"])
def hidden_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [n, H]
    start_ptr,  # int32 [R]
    end_ptr,  # int32 [R]
    x_ptr,  # [R, H]
    rows,
    hidden,
    seed,
    scale,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """HIDDEN columns of the hidden values of ROWS spans. Grid (row tiles, column tiles)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    exists = row < rows - row0
    start = tl.load(start_ptr + row0 + row, mask=exists, other=0).to(tl.int64)
    end = tl.load(end_ptr + row0 + row, mask=exists, other=-1).to(tl.int64)
    key = dropout_key(start * WIDTH + end - start, seed)
    column = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    x = hidden_tile(a_ptr, b_ptr, start, end, end >= 0, key, column, hidden, THRESHOLD).to(tl.float32)
    offset = (row * hidden)[:, None] + column[None, :]
    tl.store(x_ptr + row0 * hidden + offset, x * scale, mask=exists[:, None] & (column < hidden)[None, :])


@triton.jit
def hidden_grads_kernel(
    x_ptr,  # [R, H]
    dx_ptr,  # [R, H]
    order_ptr,  # int64 [R] rows by word
    begin_ptr,  # int64 [n + 1] the index in order where each word's rows begin
    out_ptr,  # fp32 [n, H] da or db, added to
    hidden,
    scale,
    COLUMNS: tl.constexpr,
):
    """Add the gradients of a tile's rows to one word. Grid (words, column tiles)."""
    word = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = column < hidden
    total = tl.zeros((COLUMNS,), tl.float32)
    for index in range(tl.load(begin_ptr + word), tl.load(begin_ptr + word + 1)):
        row = tl.load(order_ptr + index) * hidden
        x = tl.load(x_ptr + row + column, mask=in_row, other=0.0).to(tl.float32)
        dx = tl.load(dx_ptr + row + column, mask=in_row, other=0.0).to(tl.float32)
        total += tl.where(x > 0.0, dx, 0.0)
    target_ptr = out_ptr + word * hidden + column
    tl.store(target_ptr, tl.load(target_ptr, mask=in_row, other=0.0) + total * scale, mask=in_row)


def span_vectors_forward(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    start: Tensor,
    end: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    """S [R, d] in a's dtype, from contiguous inputs. Never waits for the device."""
    rows, hidden, width, columns = len(start), a.shape[1], len(w2), _COLUMNS[a.dtype]
    out = a.new_empty(rows, width)
    if out.numel():
        with torch.cuda.device_of(a):
            vectors_kernel[triton.cdiv(rows, TILES.rows), triton.cdiv(width, columns)](
                a, b, w2, b2, start, end, out, rows, hidden, width, as_int32(seed), 1.0 / (1.0 - dropout_p),
                WIDTH=max_width, THRESHOLD=dropout_threshold(dropout_p), ROWS=TILES.rows, HIDDEN=TILES.hidden,
                COLUMNS=columns, num_warps=8, num_stages=2,
            )  # fmt: skip
    return out


def span_hidden(
    a: Tensor, b: Tensor, start: Tensor, end: Tensor, max_width: int, dropout_p: float, seed: int
) -> Tensor:
    """x [R, H] in a's dtype, from contiguous inputs."""
    rows, hidden = len(start), a.shape[1]
    x = a.new_empty(rows, hidden)
    if x.numel():
        with torch.cuda.device_of(a):
            hidden_kernel[triton.cdiv(rows, TILES.words), triton.cdiv(hidden, TILES.columns)](
                a, b, start, end, x, rows, hidden, as_int32(seed), 1.0 / (1.0 - dropout_p),
                WIDTH=max_width, THRESHOLD=dropout_threshold(dropout_p), ROWS=TILES.words, HIDDEN=TILES.columns,
                num_warps=TILES.word_warps,
            )  # fmt: skip
    return x


def span_hidden_backward(
    start: Tensor, end: Tensor, x: Tensor, dx: Tensor, da: Tensor, db: Tensor, dropout_p: float
) -> None:
    """Add dx / (1 - p) where x > 0 to da[start] and db[end], fp32 [n, H]; x, dx [R, H] contiguous."""
    words, hidden = da.shape
    if not x.numel():
        return
    grid = (words, triton.cdiv(hidden, _WORD_COLUMNS))
    for word, out in ((start, da), (end, db)):
        by_word, order = torch.where(end < 0, words, word).sort(stable=True)  # rows without a span come last
        begins = torch.searchsorted(by_word, torch.arange(words + 1, dtype=by_word.dtype, device=x.device))
        with torch.cuda.device_of(x):
            hidden_grads_kernel[grid](
                x, dx, order, begins, out, hidden, 1.0 / (1.0 - dropout_p), COLUMNS=_WORD_COLUMNS, num_warps=2
            )
