"""span_vectors: the vectors of all or of chosen spans, by the span FFN's second Linear."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from . import dispatch
from ._check import check_dropout, check_max_width, check_offsets_shape, check_tensors, text_offsets
from ._register import differentiable_op
from ._span import Grads, stored
from .dispatch import accumulator_dtype, backend, direct, needs_grad, promote, storage, triton_kernels

# Spans whose hidden values [rows, H] exist at a time. CPU: 6 MB at H = 3,072, which mostly stay in the cache between
# the kernel that writes them and the matrix product that reads them; fewer rows slow that product (docs/LOG.md).
# CUDA: enough for a product at full speed.
_TILE_ROWS = {"cpu": 512, "cuda": 16_384}


class VectorInputs(NamedTuple):
    """Arguments of span_vectors: see `glimodern.ops.span_vectors`."""

    a: Tensor
    b: Tensor
    w2: Tensor
    b2: Tensor
    cu_words: Tensor
    spans: Tensor | None
    max_width: int
    dropout_p: float
    seed: int

    @property
    def floats(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self[:4]

    def checked(self) -> "VectorInputs":
        """The inputs with all floats in their widest dtype; ValueError or TypeError for bad shapes, dtypes, devices."""
        a, b, w2, b2, cu_words, spans, max_width, dropout_p, _ = self
        integers = {"cu_words": cu_words} if spans is None else {"cu_words": cu_words, "spans": spans}
        check_tensors({"a": a, "b": b, "w2": w2, "b2": b2}, integers)
        if a.ndim != 2 or b.shape != a.shape:
            raise ValueError(f"a, b: expected one shape [words, H], got {tuple(a.shape)} and {tuple(b.shape)}")
        if w2.ndim != 2 or w2.shape[1] != a.shape[1]:
            raise ValueError(f"w2: expected [d, {a.shape[1]}] (H as in a), got {tuple(w2.shape)}")
        if b2.shape != w2.shape[:1]:
            raise ValueError(f"b2: expected [{len(w2)}] (one bias per row of w2), got {tuple(b2.shape)}")
        check_offsets_shape("cu_words", cu_words)
        if spans is not None and (spans.ndim != 2 or spans.shape[1] != 2):
            raise ValueError(f"spans: expected [s, 2], rows (word, k), got {tuple(spans.shape)}")
        check_max_width(max_width)
        check_dropout(dropout_p)
        a, b, w2, b2 = promote(a, b, w2, b2)
        return VectorInputs(a, b, w2, b2, *self[4:])


class _Rows(NamedTuple):
    """int32 [rows]: first and last word of every span asked for; last word -1 for a span that leaves its text."""

    start: Tensor
    end: Tensor


def _rows_of(inputs: VectorInputs, check: bool) -> _Rows:
    """The spans' words; check: ValueError on the CPU for bad cu_words, and for a chosen span that leaves its text."""
    words, cu_words, spans, max_width = len(inputs.a), inputs.cu_words, inputs.spans, inputs.max_width
    device = cu_words.device
    check = check and device.type == "cpu"
    if check:
        text_offsets("cu_words", cu_words, words)
    if spans is None:
        start = torch.arange(words, dtype=torch.int32, device=device).repeat_interleave(max_width)
        width = torch.arange(max_width, dtype=torch.int32, device=device).repeat(words)
    else:
        start, width = (x.to(torch.int32).contiguous() for x in spans.unbind(1))
    ends = cu_words[1:].to(torch.int32).contiguous()
    text = torch.searchsorted(ends, start, right=True)
    inside = (start >= 0) & (text < len(ends)) & (width >= 0) & (width < max_width)
    if len(ends):
        inside &= start + width < ends[text.clamp(max=len(ends) - 1)]
    if check and spans is not None and not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise ValueError(
            f"spans: expected rows (word, k) with a span word..word+k of at most max_width = {max_width} words inside "
            f"one text, word counted in the whole batch, got {tuple(spans[row].tolist())} in row {row}"
        )
    return _Rows(torch.where(inside, start, 0), torch.where(inside, start + width, -1))


class _Hidden:
    """Hidden values x = drop(relu(a_start + b_end)) of a tile of spans, and their gradients, by one backend.

    x is in the dtype that the backend computes in (`_computing`). C++ reads a and b as they are stored, bf16 included;
    the other backends convert them first.
    """

    def __init__(self, chosen: str, inputs: VectorInputs) -> None:
        a, b = inputs.a, inputs.b
        self.chosen = chosen
        self.a, self.b = (stored(a), stored(b)) if chosen == "cpp" else _computing(chosen, a, b)
        self.options = (inputs.max_width, inputs.dropout_p, inputs.seed)
        self.buffer = a.new_empty(0, dtype=accumulator_dtype(a))

    def _cpp_arguments(self, rows: _Rows) -> tuple[Any, ...]:
        max_width, dropout_p, seed = self.options
        addresses = (x.data_ptr() for x in (self.a, self.b, *rows))
        sizes = (len(rows.start), self.a.shape[1], max_width)
        return (*addresses, *sizes, dropout_p, seed & 0xFFFFFFFF, storage(self.a.dtype))

    def forward(self, rows: _Rows) -> Tensor:
        """x [rows, H], which the next call may overwrite."""
        start, end = rows
        max_width, dropout_p, seed = self.options
        if self.chosen == "cpp":
            if len(self.buffer) < len(start):  # once: fresh pages cost as much as a tile
                self.buffer = self.buffer.new_empty(len(start), self.a.shape[1])
            x = self.buffer[: len(start)]
            dispatch.extension.span_hidden(*self._cpp_arguments(rows), x.data_ptr(), torch.get_num_threads())
            return x
        if self.chosen == "triton":
            return triton_kernels("span_vectors").span_hidden(self.a, self.b, start, end, max_width, dropout_p, seed)
        first, last = start.long(), end.long()
        x = torch.relu(self.a[first] + self.b[last.clamp(min=0)])
        if dropout_p > 0.0:
            keep = reference.dropout_keep(first * max_width + last - first, x.shape[1], dropout_p, seed)
            x = torch.where(keep, x / (1.0 - dropout_p), 0.0)
        return torch.where((last >= 0)[:, None], x, 0.0)

    def backward(self, rows: _Rows, x: Tensor, dx: Tensor, da: Tensor, db: Tensor) -> None:
        """Add to da[start] and db[end] the gradients that dx [rows, H] gives."""
        start, end = rows
        _, dropout_p, _ = self.options
        if self.chosen == "cpp":
            addresses = [y.data_ptr() for y in (x, dx, da, db)]
            threads = torch.get_num_threads()
            dispatch.extension.span_hidden_backward(*self._cpp_arguments(rows), *addresses, threads)
            return
        if self.chosen == "triton":
            triton_kernels("span_vectors").span_hidden_backward(start, end, x, dx, da, db, dropout_p)
            return
        inside = end >= 0
        passed = torch.where(x > 0.0, dx / (1.0 - dropout_p), 0.0)[inside]
        da.index_add_(0, start[inside].long(), passed)
        db.index_add_(0, end[inside].long(), passed)


def _tile_rows(device: torch.device) -> int:
    return _TILE_ROWS["cuda" if device.type == "cuda" else "cpu"]


def _tiles(rows: int, device: torch.device) -> Iterator[slice]:
    step = _tile_rows(device)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _computing(chosen: str, *floats: Tensor) -> list[Tensor]:
    """The tensors contiguous, in the dtype to compute in: for Triton the inputs', else accumulator_dtype."""
    return [(x if chosen == "triton" else x.to(accumulator_dtype(x))).contiguous() for x in floats]


def _vectors(inputs: VectorInputs, check: bool) -> Tensor:
    a, b, w2, b2, _, spans, max_width, dropout_p, seed = inputs
    chosen = backend("span_vectors", a)
    start, end = _rows_of(inputs, check)
    shape = (len(a), max_width, len(w2)) if spans is None else (len(spans), len(w2))
    with torch.no_grad():
        weight, bias = _computing(chosen, w2, b2)
        if chosen == "triton":
            launch = triton_kernels("span_vectors").span_vectors_forward
            options = (max_width, dropout_p, seed)
            return launch(a.contiguous(), b.contiguous(), weight, bias, start, end, *options).view(shape)
        hidden = _Hidden(chosen, inputs)
        vectors = a.new_empty(len(start), len(w2))
        buffer = bias.new_empty(min(len(start), _tile_rows(a.device)), len(w2))
        for tile in _tiles(len(start), a.device):
            stored_rows = vectors[tile]
            out = stored_rows if stored_rows.dtype == buffer.dtype else buffer[: len(stored_rows)]
            torch.addmm(bias, hidden.forward(_Rows(start[tile], end[tile])), weight.T, out=out)
            if out is not stored_rows:
                stored_rows.copy_(out)
        vectors[end < 0] = 0.0
        return vectors.view(shape)


def _forward(inputs: VectorInputs) -> Tensor:
    return _vectors(inputs, check=True)


def _backward(grad: Tensor, inputs: VectorInputs) -> Grads:
    a, b, w2, b2 = inputs.floats
    chosen = backend("span_vectors", a)
    start, end = _rows_of(inputs, check=True)
    with torch.no_grad():
        (weight,), upstream = _computing(chosen, w2), grad.reshape(len(start), len(w2))
        hidden = _Hidden(chosen, inputs)
        da, db, dw2, db2 = (x.new_zeros(x.shape, dtype=accumulator_dtype(x)) for x in (a, b, w2, b2))
        buffer = weight.new_empty(min(len(start), _tile_rows(a.device)), a.shape[1])
        for tile in _tiles(len(start), a.device):
            rows = _Rows(start[tile], end[tile])
            inside = (rows.end >= 0)[:, None]
            dvectors = torch.where(inside, upstream[tile].to(weight.dtype), 0.0)
            x = hidden.forward(rows)
            dx = torch.mm(dvectors, weight, out=buffer[: len(x)])
            if x.dtype == dw2.dtype:
                dw2.addmm_(dvectors.T, x)
            else:
                dw2 += dvectors.T @ x
            db2 += dvectors.sum(0, dtype=db2.dtype)
            hidden.backward(rows, x, dx, da, db)
        return da.to(a.dtype), db.to(a.dtype), dw2.to(a.dtype), db2.to(a.dtype)


def _fake(inputs: VectorInputs) -> Tensor:
    a, _, w2, _, _, spans, max_width, _, _ = inputs
    shape = (a.shape[0], max_width) if spans is None else (spans.shape[0],)
    return a.new_empty((*shape, w2.shape[0]))


_span_vectors = differentiable_op("span_vectors", _forward, _backward, _fake)


def vectors_of_checked(inputs: VectorInputs) -> Tensor:
    """`span_vectors` of inputs that were checked, offsets and spans included; the registered op checks those again."""
    if direct(needs_grad(*inputs.floats), inputs.floats):
        return _vectors(inputs, check=False)
    return _span_vectors.registered(inputs)


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
    """Vectors of all or of chosen spans: S(i, k) = drop(relu(a_i + b_{i+k})) W2^T + b2, for any width d of the Linear.

    a, b: [n, H], one row per word. w2: [d, H], b2: [d]. All four fp32, fp16, bf16 or fp64, promoted to the widest dtype
        among them; differentiable.
    cu_words: int32 [texts + 1], the texts' offsets in a and b.
    spans: int [s, 2], rows (i, k) inside their texts, in any order, repeats allowed; None: all spans.
    dropout_p, seed: the mask of `span_scores`.

    Returns, in the inputs' dtype, [n, max_width, d], zero and without gradient for a span i..i+k that leaves its text;
    or [s, d] for chosen spans. Both passes hold the hidden values of one tile of spans at a time; the backward pass
    computes them again.

    Raises ValueError or TypeError for bad shapes, dtypes and devices and, on the CPU, for bad offsets and spans
    (elsewhere a bad span gives zeros).
    """
    inputs = VectorInputs(a, b, w2, b2, cu_words, spans, int(max_width), float(dropout_p), int(seed)).checked()
    return _span_vectors(inputs, *inputs.floats)
