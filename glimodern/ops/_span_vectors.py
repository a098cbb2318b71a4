"""span_vectors: the vectors of all or of chosen spans, the second Linear of the span FFN included."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_dropout, check_offsets, check_tensors
from ._span import Grads, stored, text_bounds
from .dispatch import (
    backend,
    direct,
    needs_grad,
    promote,
    storage,
    triton_kernels,
    wide_dtype,
)

# Spans whose hidden values [rows, H] exist at a time. CPU: 6 MB at H = 3,072, which mostly stay in the cache between
# the kernel that writes them and the matrix product that reads them; fewer rows slow that product (docs/LOG.md).
# CUDA: enough for a product at full speed.
_TILE_ROWS = {"cpu": 512, "cuda": 16_384}


def _check(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, cu_words: Tensor, max_width: int, spans: Tensor | None, p: float
) -> None:
    op = "span_vectors"
    integers = {"cu_words": cu_words} if spans is None else {"cu_words": cu_words, "spans": spans}
    check_tensors(op, {"a": a, "b": b, "w2": w2, "b2": b2}, integers)
    if a.ndim != 2 or b.shape != a.shape:
        raise ValueError(f"{op}: a and b must both be [words, H], got {tuple(a.shape)} and {tuple(b.shape)}")
    if w2.ndim != 2 or w2.shape[1] != a.shape[1]:
        raise ValueError(f"{op}: w2 must be [d, {a.shape[1]}] (H as in a), got {tuple(w2.shape)}")
    if b2.shape != w2.shape[:1]:
        raise ValueError(f"{op}: b2 must be [{len(w2)}] (one bias a row of w2), got {tuple(b2.shape)}")
    check_offsets(op, "cu_words", cu_words)
    if spans is not None and (spans.ndim != 2 or spans.shape[1] != 2):
        raise ValueError(f"{op}: spans must be [s, 2], rows (word, k), got {tuple(spans.shape)}")
    if max_width < 1:
        raise ValueError(f"{op}: max_width must be at least 1, got {max_width}")
    check_dropout(op, p)


def _rows(words: int, cu_words: Tensor, spans: Tensor | None, max_width: int) -> tuple[Tensor, Tensor]:
    """int32 [rows] first and last word of every span asked, last word -1 where it leaves its text."""
    device = cu_words.device
    if device.type == "cpu":
        text_bounds("cu_words", cu_words, words)
    if spans is None:
        start = torch.arange(words, dtype=torch.int32, device=device).repeat_interleave(max_width)
        width = torch.arange(max_width, dtype=torch.int32, device=device).repeat(words)
    else:
        start, width = (x.to(torch.int32).contiguous() for x in spans.unbind(1))
    ends = cu_words[1:].to(torch.int32).contiguous()
    text = torch.searchsorted(ends, start, right=True)
    known = (start >= 0) & (text < len(ends)) & (width >= 0) & (width < max_width)
    if len(ends):
        known &= start + width < ends[text.clamp(max=len(ends) - 1)]
    if spans is not None and device.type == "cpu" and not bool(known.all()):
        row = int((~known).nonzero()[0])
        raise ValueError(
            f"spans row {row} is (word, k) = {tuple(spans[row].tolist())}, expected a span word..word+k of at most"
            f" max_width = {max_width} words inside one text, word counted in the whole batch"
        )
    return torch.where(known, start, 0), torch.where(known, start + width, -1)


class _Hidden:
    """x = drop(relu(a_start + b_end)) of a tile of spans and its way back, by one backend.

    x is in the dtype that the backend computes in (`_computing`); a and b are read as they are stored by C++ (bf16 is
    not converted before), else converted to that dtype first.
    """

    def __init__(self, chosen: str, a: Tensor, b: Tensor, max_width: int, dropout_p: float, seed: int) -> None:
        self.chosen = chosen
        self.a, self.b = (stored(a), stored(b)) if chosen == "cpp" else _computing(chosen, a, b)
        self.options = (max_width, dropout_p, seed)
        self.buffer = a.new_empty(0, dtype=wide_dtype(a))

    def _cpp(self, start: Tensor, end: Tensor) -> tuple[Any, ...]:
        max_width, dropout_p, seed = self.options
        addresses = (x.data_ptr() for x in (self.a, self.b, start, end))
        sizes = (len(start), self.a.shape[1], max_width)
        return (*addresses, *sizes, dropout_p, seed & 0xFFFFFFFF, storage(self.a.dtype))

    def forward(self, start: Tensor, end: Tensor) -> Tensor:
        """int32 [r], int32 [r] -> x [r, H], which the next call may overwrite."""
        max_width, dropout_p, seed = self.options
        if self.chosen == "cpp":
            if len(self.buffer) < len(start):  # once: fresh pages cost as much as a tile
                self.buffer = self.buffer.new_empty(len(start), self.a.shape[1])
            x = self.buffer[: len(start)]
            dispatch.extension.span_hidden(*self._cpp(start, end), x.data_ptr(), torch.get_num_threads())
            return x
        if self.chosen == "triton":
            return triton_kernels("span_vectors").span_hidden(self.a, self.b, start, end, max_width, dropout_p, seed)
        first, last = start.long(), end.long()
        x = torch.relu(self.a[first] + self.b[last.clamp(min=0)])
        if dropout_p > 0.0:
            keep = reference.dropout_keep(first * max_width + last - first, x.shape[1], dropout_p, seed)
            x = torch.where(keep, x / (1.0 - dropout_p), 0.0)
        return torch.where((last >= 0)[:, None], x, 0.0)

    def backward(self, start: Tensor, end: Tensor, x: Tensor, dx: Tensor, da: Tensor, db: Tensor) -> None:
        """da[start], db[end] += the gradient that dx [r, H] gives."""
        _, dropout_p, _ = self.options
        if self.chosen == "cpp":
            addresses = [y.data_ptr() for y in (x, dx, da, db)]
            dispatch.extension.span_hidden_backward(*self._cpp(start, end), *addresses, torch.get_num_threads())
            return
        if self.chosen == "triton":
            triton_kernels("span_vectors").span_hidden_backward(start, end, x, dx, da, db, dropout_p)
            return
        known = end >= 0
        passed = torch.where(x > 0.0, dx / (1.0 - dropout_p), 0.0)[known]
        da.index_add_(0, start[known].long(), passed)
        db.index_add_(0, end[known].long(), passed)


def _tile_rows(device: torch.device) -> int:
    return _TILE_ROWS["cuda" if device.type == "cuda" else "cpu"]


def _tiles(rows: int, device: torch.device) -> Iterator[slice]:
    step = _tile_rows(device)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _computing(chosen: str, *floats: Tensor) -> list[Tensor]:
    """Contiguous, in the dtype that the backend computes in: Triton in the inputs', the others in fp32 (fp64: fp64)."""
    return [(x if chosen == "triton" else x.to(wide_dtype(x))).contiguous() for x in floats]


def _vectors_impl(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    spans: Tensor | None,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    chosen = backend("span_vectors", a)
    start, end = _rows(len(a), cu_words, spans, max_width)
    shape = (len(a), max_width, len(w2)) if spans is None else (len(spans), len(w2))
    with torch.no_grad():
        wide_w2, wide_b2 = _computing(chosen, w2, b2)
        if chosen == "triton":
            launch = triton_kernels("span_vectors").span_vectors_forward
            return launch(
                a.contiguous(), b.contiguous(), wide_w2, wide_b2, start, end, max_width, dropout_p, seed
            ).view(shape)
        hidden = _Hidden(chosen, a, b, max_width, dropout_p, seed)
        vectors = a.new_empty(len(start), len(w2))
        buffer = wide_b2.new_empty(min(len(start), _tile_rows(a.device)), len(w2))
        for tile in _tiles(len(start), a.device):
            rows = vectors[tile]
            wide_rows = rows if rows.dtype == buffer.dtype else buffer[: len(rows)]
            torch.addmm(wide_b2, hidden.forward(start[tile], end[tile]), wide_w2.T, out=wide_rows)
            if wide_rows is not rows:
                rows.copy_(wide_rows)
        vectors[end < 0] = 0.0
        return vectors.view(shape)


def _vectors_backward_impl(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    spans: Tensor | None,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    chosen = backend("span_vectors", a)
    start, end = _rows(len(a), cu_words, spans, max_width)
    with torch.no_grad():
        (wide_w2,), rows = _computing(chosen, w2), grad.reshape(len(start), len(w2))
        hidden = _Hidden(chosen, a, b, max_width, dropout_p, seed)
        da, db, dw2, db2 = (x.new_zeros(x.shape, dtype=wide_dtype(x)) for x in (a, b, w2, b2))
        buffer = wide_w2.new_empty(min(len(start), _tile_rows(a.device)), a.shape[1])
        for tile in _tiles(len(start), a.device):
            known = (end[tile] >= 0)[:, None]
            dvectors = torch.where(known, rows[tile].to(wide_w2.dtype), 0.0)  # outside its text: no gradient
            x = hidden.forward(start[tile], end[tile])
            dx = torch.mm(dvectors, wide_w2, out=buffer[: len(x)])
            if x.dtype == dw2.dtype:
                dw2.addmm_(dvectors.T, x)
            else:
                dw2 += dvectors.T @ x
            db2 += dvectors.sum(0, dtype=db2.dtype)
            hidden.backward(start[tile], end[tile], x, dx, da, db)
        return da.to(a.dtype), db.to(a.dtype), dw2.to(a.dtype), db2.to(a.dtype)


@torch.library.custom_op("glimodern::span_vectors", mutates_args=())
def _vectors_op(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    spans: Tensor | None,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Tensor:
    return _vectors_impl(a, b, w2, b2, cu_words, spans, max_width, dropout_p, seed)


@_vectors_op.register_fake
def _(a, b, w2, b2, cu_words, spans, max_width, dropout_p, seed):  # type: ignore[no-untyped-def]
    shape = (a.shape[0], max_width) if spans is None else (spans.shape[0],)
    return a.new_empty((*shape, w2.shape[0]))


@torch.library.custom_op("glimodern::span_vectors_backward", mutates_args=())
def _vectors_backward_op(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    spans: Tensor | None,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    return _vectors_backward_impl(grad, a, b, w2, b2, cu_words, spans, max_width, dropout_p, seed)


@_vectors_backward_op.register_fake
def _(grad, a, b, w2, b2, *options):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (a, b, w2, b2))


def _vectors_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _vectors_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = _vectors_backward_op(grad, *ctx.saved_tensors, *ctx.options)
    wanted = (x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None)


_vectors_op.register_autograd(_vectors_autograd, setup_context=_vectors_setup)


def span_vectors(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    max_width: int,
    spans: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Vectors of all or of chosen spans, S(i, k) = drop(relu(a_i + b_{i+k})) W2^T + b2, for any linear width d.

    a, b [n, H] per word; w2 [d, H], b2 [d] (fp32, fp16, bf16 or fp64, promoted to the widest among them; all four
    differentiable); cu_words int32 [texts + 1]: the texts' bounds in a and b. -> [n, max_width, d] in that dtype, zero
    without gradient where the span i..i+k leaves its text; or, for spans int [s, 2], rows (i, k) inside their texts in
    any order (repeats allowed), -> [s, d]. dropout_p, seed: the mask of `span_scores`. The hidden values exist for
    a tile of spans at a time, in both directions; the backward pass computes them again.

    Raises ValueError or TypeError, with what was expected, for bad shapes, dtypes, devices and, on the CPU, bounds and
    spans (elsewhere such a span gives zeros).
    """
    _check(a, b, w2, b2, cu_words, max_width, spans, dropout_p)
    a, b, w2, b2 = promote(a, b, w2, b2)
    run = _vectors_impl if direct(needs_grad(a, b, w2, b2), (a, b, w2, b2)) else _vectors_op
    return run(a, b, w2, b2, cu_words, spans, int(max_width), float(dropout_p), int(seed))
