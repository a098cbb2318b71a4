# mypy: allow-untyped-defs, disable-error-code="import-untyped"
"""Token scores: logits(r) = W2 h(r) + b2, h(r) = drop(relu(a_i + b_t + W1p (x_i * y_t))), for rows r: word i, type t.

Inputs: a [n, H], b [m, H], x [n, d], y [m, d], w1 = W1p [H, d], w2 [3, H], b2 [3] (fp32, fp16 or bf16, all the same;
fp32 accumulators), word, type int32 [R]; dropout as glimodern.reference.dropout_keep with the row r. Output: fp32
[R, 3], start, end and inside.

Forward is one kernel. A program holds the hidden values of some pairs one tile of columns at a time: the products
x_i * y_t, rounded to the inputs' dtype, go through the tensor cores with W1p; the rest is fp32 in registers. Nothing of
size R * H is stored: in fp32, 4 H bytes a pair. The product with W2 has three columns, too few for tensor cores.

Backward is glimodern/ops/_token_scores.py's (`tiled_grads`): with g = dL/dlogits, dz = (g W2) [z > 0] drop,

    da_i = sum_t dz    db_t = sum_i dz    dW1p = dz^T p    dp = dz W1p    dx_i = sum_t dp y_t    dy_t = sum_i dp x_i

whose products are the matrix library's, for some pairs at a time.
"""

import torch
import triton
import triton.language as tl
from glimodern.kernels._common import INTERPRETED, as_int32, dropout_keep, dropout_key, product
from torch import Tensor

from glimodern.reference import dropout_threshold

# Pairs of a program, columns of the hidden layer per tile (64 spill in fp32), and inputs of W1p per step. They follow
# from the machine code; no GPU has timed them.
_ROWS, _HIDDEN, _WIDTH = 64, 32, 32


@triton.jit(do_not_specialize=["rows", "seed"])
def token_scores_kernel(
    a_ptr,  # [n, H]
    b_ptr,  # [m, H]
    x_ptr,  # [n, d]
    y_ptr,  # [m, d]
    w1_ptr,  # [H, d]
    w2_ptr,  # [3, H]
    b2_ptr,  # [3]
    word_ptr,  # int32 [R]
    type_ptr,  # int32 [R]
    out_ptr,  # fp32 [R, 3]
    rows,
    hidden,
    width,
    seed,
    scale,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The logits of ROWS pairs. Grid (row tiles)."""
    row0 = tl.program_id(0).to(tl.int64) * ROWS
    row = row0 + tl.arange(0, ROWS)
    exists = row < rows
    word = tl.load(word_ptr + row, mask=exists, other=0).to(tl.int64)
    type_id = tl.load(type_ptr + row, mask=exists, other=0).to(tl.int64)
    key = dropout_key(row, seed)
    start = tl.zeros((ROWS,), tl.float32) + tl.load(b2_ptr).to(tl.float32)
    end = tl.zeros((ROWS,), tl.float32) + tl.load(b2_ptr + 1).to(tl.float32)
    inside = tl.zeros((ROWS,), tl.float32) + tl.load(b2_ptr + 2).to(tl.float32)
    for first in range(0, hidden, HIDDEN):
        column = first + tl.arange(0, HIDDEN)
        real = column < hidden
        z = tl.zeros((ROWS, HIDDEN), tl.float32)
        for begin in range(0, width, WIDTH):
            place = begin + tl.arange(0, WIDTH)
            mask = exists[:, None] & (place < width)[None, :]
            x = tl.load(x_ptr + (word * width)[:, None] + place[None, :], mask=mask, other=0.0)
            y = tl.load(y_ptr + (type_id * width)[:, None] + place[None, :], mask=mask, other=0.0)
            if INTERPRETED:  # as in product
                pairs = (x.to(tl.float32) * y.to(tl.float32)).to(x_ptr.dtype.element_ty)
            else:
                pairs = x * y
            w1 = tl.load(
                w1_ptr + (column * width)[None, :] + place[:, None],
                mask=real[None, :] & (place < width)[:, None],
                other=0.0,
            )
            z = product(pairs, w1, z)
        mask = exists[:, None] & real[None, :]
        z += tl.load(a_ptr + (word * hidden)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        z += tl.load(b_ptr + (type_id * hidden)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if THRESHOLD > 0:
            z = tl.where(dropout_keep(key, column, THRESHOLD), z * scale, 0.0)
        w_start = tl.load(w2_ptr + column, mask=real, other=0.0).to(tl.float32)
        w_end = tl.load(w2_ptr + hidden + column, mask=real, other=0.0).to(tl.float32)
        w_inside = tl.load(w2_ptr + 2 * hidden + column, mask=real, other=0.0).to(tl.float32)
        start += tl.sum(z * w_start[None, :], 1)
        end += tl.sum(z * w_end[None, :], 1)
        inside += tl.sum(z * w_inside[None, :], 1)
    tl.store(out_ptr + row * 3, start, mask=exists)
    tl.store(out_ptr + row * 3 + 1, end, mask=exists)
    tl.store(out_ptr + row * 3 + 2, inside, mask=exists)


def token_scores_forward(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    w1: Tensor,
    w2: Tensor,
    b2: Tensor,
    word: Tensor,
    type_id: Tensor,
    dropout_p: float,
    seed: int,
) -> Tensor:
    """Logits fp32 [R, 3]. Never waits for the device."""
    a, b, x, y, w1, w2, b2 = (t.contiguous() for t in (a, b, x, y, w1, w2, b2))
    out = a.new_empty(len(word), 3, dtype=torch.float32)
    if len(word):
        with torch.cuda.device_of(a):
            token_scores_kernel[(triton.cdiv(len(word), _ROWS),)](
                a, b, x, y, w1, w2, b2, word, type_id, out, len(word), *w1.shape, as_int32(seed),
                1.0 / (1.0 - dropout_p),
                THRESHOLD=dropout_threshold(dropout_p), ROWS=_ROWS, HIDDEN=_HIDDEN, WIDTH=_WIDTH,
                num_warps=4, num_stages=2,
            )  # fmt: skip
    return out
