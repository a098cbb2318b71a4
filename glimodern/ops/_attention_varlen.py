"""attention_varlen: bidirectional attention inside each text of a packed batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glimodern.reference import RelativePositions

from . import _attention_tiles as plain
from . import dispatch
from ._check import check_dropout, check_offsets_shape, check_tensors, text_offsets
from ._register import differentiable_op
from .dispatch import FP16, FP32, accumulator_dtype, backend, direct, needs_grad, promote, takes_flash

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of q, k, v, c2p, p2c, bias; empty where there is none


class AttentionInputs(NamedTuple):
    """Arguments of the registered op: see `glimodern.ops.attention_varlen`. c2p to rows: its `positions`, or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    c2p: Tensor | None
    p2c: Tensor | None
    bias: Tensor | None
    rows: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    window: int | None
    scale: float
    dropout_p: float
    seed: int

    @property
    def tile_options(self) -> plain.Options:
        return plain.Options(self.window, self.scale, self.dropout_p, self.seed)

    @property
    def positions(self) -> RelativePositions | None:
        return None if self.rows is None else RelativePositions(self.rows, self.c2p, self.p2c, self.bias)


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, window: int | None, dropout_p: float
) -> None:
    """ValueError or TypeError for bad shapes, dtypes, devices and options; reads no tensor."""
    check_tensors({"q": q, "k": k, "v": v}, {"cu_seqlens": cu_seqlens})
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v: expected one shape [tokens, heads, head_dim], got {tuple(q.shape)}, {tuple(k.shape)} and"
            f" {tuple(v.shape)}"
        )
    check_offsets_shape("cu_seqlens", cu_seqlens)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen: expected the tokens of the longest text, got {max_seqlen}")
    if window is not None and window < 0:
        raise ValueError(
            f"window: expected None (whole texts) or at least 0 (keys with |i - j| <= window), got {window}"
        )
    check_dropout(dropout_p)


def check_positions(positions: RelativePositions, q: Tensor) -> None:
    """ValueError or TypeError unless the tables fit q [tokens, heads, head_dim]; reads no tensor."""
    rows, c2p, p2c, bias = positions
    tables = {name: x for name, x in (("c2p", c2p), ("p2c", p2c), ("bias", bias)) if x is not None}
    if not tables:
        raise ValueError("positions: expected c2p, p2c or bias, got none; pass positions=None for scores without them")
    check_tensors({"q": q, **tables}, {"positions.rows": rows})
    if rows.ndim != 1 or len(rows) % 2 == 0:
        raise ValueError(f"positions.rows: expected [2 reach + 1], rows of -reach to reach, got {tuple(rows.shape)}")
    count = len(next(iter(tables.values())))
    _, heads, dim = q.shape
    for name, x in tables.items():
        expected = (count, heads) if name == "bias" else (count, heads, dim)
        if x.shape != expected:
            raise ValueError(f"positions.{name}: expected {expected}, got {tuple(x.shape)}")


def check_rows(rows: Tensor, count: int) -> None:
    """ValueError unless every element of rows is a row of tables of `count` rows. Reads the tensor."""
    low, high = torch.stack(torch.aminmax(rows)).tolist()
    if not 0 <= low <= high < count:
        raise ValueError(f"positions.rows: expected rows of tables of {count} rows, got {low} to {high}")


def _checked_offsets(cu_seqlens: Tensor | Sequence[int], tokens: int, max_seqlen: int) -> list[int]:
    """The offsets on the host; ValueError unless they rise from 0 to `tokens` by at most max_seqlen."""
    offsets = text_offsets("cu_seqlens", cu_seqlens, tokens)
    longest = max((end - start for start, end in zip(offsets, offsets[1:], strict=False)), default=0)
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen: expected at least {longest}, the longest text of cu_seqlens, got {max_seqlen}")
    return offsets


def _text_by_text(q: Tensor, k: Tensor, v: Tensor, offsets: Sequence[int], scale: float, dropout_p: float) -> Tensor:
    """PyTorch's attention of each text, without windows; zero outside the texts.

    Dropout draws from the device's generator.
    """
    first, last = (offsets[0], offsets[-1]) if len(offsets) else (0, 0)
    outs = [q.new_zeros(q[:first].shape)]
    for start, end in zip(offsets, offsets[1:], strict=False):
        q1, k1, v1 = (x[None, start:end].transpose(1, 2) for x in (q, k, v))  # [1, heads, tokens, head_dim]
        out = F.scaled_dot_product_attention(q1, k1, v1, dropout_p=dropout_p, scale=scale)
        outs.append(out.transpose(1, 2)[0])
    return torch.cat([*outs, q.new_zeros(q[last:].shape)])


class _CppInputs:
    """Arguments of the extension's attention kernels; keeps the tensors alive that `arguments` has the addresses of.

    Tensors with unit last stride are read in place, others copied.
    """

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs
        self.dtype = FP32 if inputs.q.dtype == FP16 else inputs.q.dtype
        self.cu = inputs.cu_seqlens.to(torch.int32).contiguous()
        self.rows = [self.stored(x) for x in inputs[:3]]
        # The tables and their rows, as the kernels read them.
        self.tables = [None if x is None else x.detach().to(self.dtype).contiguous() for x in (inputs.c2p, inputs.p2c)]
        self.tables.append(None if inputs.bias is None else inputs.bias.detach().contiguous())
        self.table_rows = None if inputs.rows is None else inputs.rows.to(torch.int32).contiguous()

    def stored(self, x: Tensor) -> Tensor:
        x = x.detach().to(self.dtype)
        return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()

    def arguments(self) -> tuple[Any, ...]:
        _, _, window, scale, dropout_p, seed = self.inputs[-6:]
        _, heads, dim = self.rows[0].shape
        sizes = (len(self.cu) - 1, heads, dim, -1 if window is None else window)
        addresses = self.addresses(*self.rows)
        storage = dispatch.storage(self.dtype)
        positions = (0, 0, 0)
        if self.table_rows is not None:
            count = next(len(x) for x in self.tables if x is not None)
            positions = (self.table_rows.data_ptr(), len(self.table_rows) // 2, count)
        tables = [0 if x is None else x.data_ptr() for x in self.tables]
        return (
            *addresses, storage, self.cu.data_ptr(), *sizes, scale, dropout_p, seed & 0xFFFFFFFF, *positions, *tables,
        )  # fmt: skip

    @staticmethod
    def addresses(*rows: Tensor) -> tuple[int, ...]:
        return tuple(n for x in rows for n in (x.data_ptr(), x.stride(0), x.stride(1)))


def _in_tiles(run: Callable[..., tuple[Tensor, ...]], *rows: Tensor, **rest: Any) -> list[Tensor]:
    """Call a function of _attention_tiles on head-major views of rows [tokens, heads, head_dim].

    Its first three results, where they are [heads, tokens, head_dim], come back as [tokens, heads, head_dim].
    """
    device = rows[0].device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):  # the tensors have the dtype to compute in
        outs = run(*(x.transpose(0, 1) for x in rows), **rest)
    return [x.transpose(0, 1).contiguous() if n < 3 and x.ndim == 3 else x for n, x in enumerate(outs)]


def _attend(
    inputs: AttentionInputs, *, save_lse: bool, offsets: Sequence[int] | None = None, check_offsets: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(out, logsumexp [heads, tokens] if save_lse or computed anyway). offsets: cu_seqlens on the host, if known."""
    q, k, v = inputs[:3]
    cu_seqlens, max_seqlen = inputs.cu_seqlens, inputs.max_seqlen
    on_cpu = cu_seqlens.device.type == "cpu"  # reading is free there, and C++ reads the tensor too
    if check_offsets:
        offsets = _checked_offsets(cu_seqlens if offsets is None or on_cpu else offsets, len(q), max_seqlen)
        if inputs.rows is not None:
            check_rows(inputs.rows, next(len(x) for x in inputs[3:6] if x is not None))
    if backend("attention_varlen", q) == "cpp":
        kernel = _CppInputs(inputs)
        out = q.new_empty(q.shape, dtype=kernel.dtype)
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=accumulator_dtype(q)) if save_lse else None
        dispatch.extension.attention_varlen_forward(
            *kernel.arguments(), out.data_ptr(), 0 if lse is None else lse.data_ptr(), torch.get_num_threads()
        )
        return out.to(q.dtype), lse
    offsets = cu_seqlens.tolist() if offsets is None else offsets
    options = dict(offsets=offsets, options=inputs.tile_options, positions=inputs.positions)
    out, lse = _in_tiles(plain.forward, q, k, v, **options)
    return out, lse


def _forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], _attend(inputs, save_lse=True))


def _backward(grad: Tensor, inputs: AttentionInputs, out: Tensor, lse: Tensor) -> Grads:
    q, k, v, *tables = inputs[:6]
    if backend("attention_varlen", q) == "cpp":
        kernel = _CppInputs(inputs)
        saved = [kernel.stored(x) for x in (grad, out)]
        grads = [q.new_empty(q.shape, dtype=kernel.dtype) for _ in range(3)]
        table_grads = [None if x is None else torch.empty_like(x) for x in kernel.tables]
        dispatch.extension.attention_varlen_backward(
            *kernel.arguments(), *kernel.addresses(*saved), lse.data_ptr(), *(x.data_ptr() for x in grads),
            *(0 if x is None else x.data_ptr() for x in table_grads), torch.get_num_threads(),
        )  # fmt: skip
        all_grads = (*grads, *(q.new_empty(0) if x is None else x for x in table_grads))
    else:
        rest = dict(lse=lse, offsets=inputs.cu_seqlens.tolist(), options=inputs.tile_options)
        all_grads = tuple(_in_tiles(plain.backward, grad, q, k, v, out, **rest, positions=inputs.positions))
    dtypes = (q.dtype, k.dtype, v.dtype, *(q.dtype if x is None else x.dtype for x in tables))
    return cast(Grads, tuple(x.to(dtype) for x, dtype in zip(all_grads, dtypes, strict=True)))


def _fake(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    q = inputs.q
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=accumulator_dtype(q))


_attention_varlen = differentiable_op("attention_varlen", _forward, _backward, _fake)


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offsets: Sequence[int] | None = None,
    check_offsets: bool = True,
    positions: RelativePositions | None = None,
) -> Tensor:
    """Bidirectional attention inside each text: out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j.

    q, k, v: [N, heads, head_dim], fp32, fp16, bf16 or fp64, promoted to the widest dtype among them; differentiable.
        Slices of one fused qkv are read in place.
    cu_seqlens: int32 [texts + 1], the texts' offsets in 0..N. max_seqlen: at least the tokens of the longest text.
    window: query i sees keys j of its text with |i - j| <= window (None: all; ModernBERT's local_attention is twice
        this). scale: None means 1 / sqrt(head_dim).
    dropout_p: share of probabilities dropped, by a counter-based generator that depends on seed, head, query and key
        alone (`reference.attention_keep`); on CUDA in half precision by the device's own generator, whatever the seed.
    offsets: cu_seqlens on the host, for tensors elsewhere: without gradients, backends that need the values then do not
        read cu_seqlens, which waits for the device.
    check_offsets: False skips the check that cu_seqlens rises from 0 to N by at most max_seqlen, and that of the values
        of positions.rows, without gradients. The kernels read memory by both, so pass False only for checked ones.
    positions: terms of the scores that depend on the relative distance d = i - j, as in DeBERTa, T5 and MPNet:

            scale * (q_i . k_j + q_i . c2p[row] + k_j . p2c[row]) + bias[row]      row = rows[clamp(d) + reach]

        with rows int [2 reach + 1], c2p and p2c [table rows, heads, head_dim] (cast to the dtype of q), and bias
        [table rows, heads] (cast to fp32, or fp64 with q); each term may be None. The tables are differentiable.

    Returns [N, heads, head_dim] in the inputs' dtype. The backward pass saves the inputs, the result and one logsumexp
    per head and query.

    CUDA tensors in half precision take FlashAttention (the package flash-attn, else PyTorch's varlen_attn). Where
    FlashAttention has no dropout or not this head_dim, and there is no window, PyTorch's attention runs text by text.
    CPU tensors take the C++ kernels. All else, and CUDA tensors with positions, runs in tiles of matrix products, which
    never make an N x N tensor.

    Raises ValueError or TypeError for bad shapes, dtypes, devices and offsets.
    """
    _check_inputs(q, k, v, cu_seqlens, max_seqlen, window, dropout_p)
    q, k, v = promote(q, k, v)
    dim = q.shape[-1]
    scale = 1.0 / math.sqrt(max(dim, 1)) if scale is None else float(scale)
    rows = c2p = p2c = bias = None
    if positions is not None:
        check_positions(positions, q)
        rows, c2p, p2c, bias = positions
        c2p, p2c = (None if x is None else x.to(q.dtype) for x in (c2p, p2c))
        bias = None if bias is None else bias.to(accumulator_dtype(q))
    if positions is None and backend("attention_varlen", q) == "flash":
        if takes_flash(q.device.type, q.dtype, dim, dropout_p):
            flash = cast(Callable[..., Tensor], dispatch.flash_attention())
            drop = {"dropout_p": float(dropout_p)} if dropout_p > 0.0 else {}
            return flash(q, k, v, cu_seqlens.to(torch.int32), int(max_seqlen), scale, window, **drop)
        if window is None:
            known = _checked_offsets(cu_seqlens if offsets is None else offsets, len(q), max_seqlen)
            return _text_by_text(q, k, v, known, scale, float(dropout_p))
        dispatch.warn_once(
            "attention_varlen runs in plain PyTorch, slowly: FlashAttention takes head dims of 8, 16 .. "
            f"{dispatch.FLASH_MAX_DIM} only, and dropout only in the package flash-attn, got dropout_p {dropout_p} and "
            f"head_dim {dim} with a window"
        )
    inputs = AttentionInputs(
        q, k, v, c2p, p2c, bias, rows, cu_seqlens, int(max_seqlen), window, scale, float(dropout_p), int(seed)
    )
    given = [x for x in inputs[:6] if isinstance(x, Tensor)]
    if direct(needs_grad(*given), given):
        return _attend(inputs, save_lse=False, offsets=offsets, check_offsets=check_offsets)[0]
    return _attention_varlen.registered(inputs)[0]
