"""attention_varlen: bidirectional attention inside each text of a packed batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _attention_tiles as plain
from . import dispatch
from ._check import check_dropout, check_offsets, check_tensors
from ._span import text_bounds
from .dispatch import FP16, FP32, backend, direct, needs_grad, promote, wide_dtype

Grads = tuple[Tensor, Tensor, Tensor]  # of q, k, v

_FLASH_MAX_DIM = 256  # FlashAttention-2's kernels: head dims up to this, multiples of 8


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, window: int | None, dropout_p: float
) -> None:
    """Shapes, dtypes and devices: what can be known without reading the tensors."""
    op = "attention_varlen"
    check_tensors(op, {"q": q, "k": k, "v": v}, {"cu_seqlens": cu_seqlens})
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"{op}: q, k and v must all be [tokens, heads, head_dim], got {tuple(q.shape)}, {tuple(k.shape)} and"
            f" {tuple(v.shape)}"
        )
    check_offsets(op, "cu_seqlens", cu_seqlens)
    if max_seqlen < 0:
        raise ValueError(f"{op}: max_seqlen must be the longest text's tokens, got {max_seqlen}")
    if window is not None and window < 0:
        raise ValueError(
            f"{op}: window must be None (whole texts) or at least 0 (keys with |i - j| <= window), got {window}"
        )
    check_dropout(op, dropout_p)


def takes_flash(device_type: str, dtype: torch.dtype, head_dim: int, dropout_p: float = 0.0) -> bool:
    """Whether attention_varlen gives such tensors to FlashAttention, which reads cu_seqlens on the device."""
    chosen, _ = dispatch.choose("attention_varlen", device_type, dtype)
    drops = dropout_p == 0.0 or dispatch.flash_drops()
    return chosen == "flash" and drops and head_dim % 8 == 0 and head_dim <= _FLASH_MAX_DIM


def _text_by_text(q: Tensor, k: Tensor, v: Tensor, bounds: Sequence[int], scale: float, dropout_p: float) -> Tensor:
    """PyTorch's attention of each text, without windows; dropout by the device's generator. Zero outside the texts."""
    first, last = (bounds[0], bounds[-1]) if len(bounds) else (0, 0)
    pieces = [q.new_zeros(q[:first].shape)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        q1, k1, v1 = (x[None, start:end].transpose(1, 2) for x in (q, k, v))  # [1, heads, tokens, head_dim]
        mixed = F.scaled_dot_product_attention(q1, k1, v1, dropout_p=dropout_p, scale=scale)
        pieces.append(mixed.transpose(1, 2)[0])
    return torch.cat([*pieces, q.new_zeros(q[last:].shape)])


def _offsets(cu_seqlens: Tensor | Sequence[int], tokens: int, max_seqlen: int) -> list[int]:
    bounds = text_bounds("cu_seqlens", cu_seqlens, tokens)
    longest = max((end - start for start, end in zip(bounds, bounds[1:], strict=False)), default=0)
    if longest > max_seqlen:
        raise ValueError(
            f"attention_varlen: max_seqlen is {max_seqlen}, but the longest text of cu_seqlens has {longest}"
        )
    return bounds


class _CppInputs:
    """Views that the extension reads as they are where it can, copies elsewhere; kept alive while it does."""

    def __init__(self, dtype: torch.dtype, cu_seqlens: Tensor, **rows: Tensor) -> None:
        self.dtype = FP32 if dtype == FP16 else dtype
        self.cu = cu_seqlens.to(torch.int32).contiguous()
        self.rows = [self.stored(x) for x in rows.values()]

    def stored(self, x: Tensor) -> Tensor:
        x = x.detach().to(self.dtype)
        return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()

    def arguments(self, window: int | None, scale: float, dropout_p: float, seed: int) -> tuple[Any, ...]:
        _, heads, dim = self.rows[0].shape
        texts, reach = len(self.cu) - 1, -1 if window is None else window
        sizes = (dispatch.storage(self.dtype), self.cu.data_ptr(), texts, heads, dim, reach)
        return (*self.addresses(*self.rows), *sizes, scale, dropout_p, seed & 0xFFFFFFFF)

    @staticmethod
    def addresses(*rows: Tensor) -> tuple[int, ...]:
        return tuple(n for x in rows for n in (x.data_ptr(), x.stride(0), x.stride(1)))


def _in_tiles(run: Callable[..., tuple[Tensor, ...]], *rows: Tensor, **rest: Any) -> list[Tensor]:
    """run, of _attention_tiles, on head-major views of rows [tokens, heads, head_dim]; its results token-major."""
    device = rows[0].device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):  # the tensors have the dtype to compute in
        outs = run(*(x.transpose(0, 1) for x in rows), **rest)
    return [x.transpose(0, 1).contiguous() if x.ndim == 3 else x for x in outs]


def _forward_impl(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: int,
    keep_lse: bool = False,
    offsets: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """keep_lse: for a backward pass. offsets: cu_seqlens on the host, if known."""
    unknown = offsets is None or cu_seqlens.device.type == "cpu"  # there reading is free, and C++ reads it too
    bounds = _offsets(cu_seqlens if unknown else cast(Sequence[int], offsets), len(q), max_seqlen)
    if backend("attention_varlen", q) == "cpp":
        inputs = _CppInputs(q.dtype, cu_seqlens, q=q, k=k, v=v)
        out = q.new_empty(q.shape, dtype=inputs.dtype)
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=wide_dtype(q)) if keep_lse else None
        dispatch.extension.attention_varlen_forward(
            *inputs.arguments(window, scale, dropout_p, seed), out.data_ptr(), 0 if lse is None else lse.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out.to(q.dtype), lse
    out, lse = _in_tiles(plain.forward, q, k, v, offsets=bounds, options=plain.Options(window, scale, dropout_p, seed))
    return out, lse


def _backward_impl(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: int,
) -> Grads:
    if backend("attention_varlen", q) == "cpp":
        inputs = _CppInputs(q.dtype, cu_seqlens, q=q, k=k, v=v)
        saved = [inputs.stored(x) for x in (grad_out, out)]
        grads = [q.new_empty(q.shape, dtype=inputs.dtype) for _ in range(3)]
        dispatch.extension.attention_varlen_backward(
            *inputs.arguments(window, scale, dropout_p, seed), *inputs.addresses(*saved), lse.data_ptr(),
            *(x.data_ptr() for x in grads), torch.get_num_threads(),
        )  # fmt: skip
        return cast(Grads, tuple(x.to(q.dtype) for x in grads))
    rest = dict(lse=lse, offsets=cu_seqlens.tolist(), options=plain.Options(window, scale, dropout_p, seed))
    return cast(Grads, tuple(_in_tiles(plain.backward, grad_out, q, k, v, out, **rest)))


@torch.library.custom_op("glimodern::attention_varlen", mutates_args=())
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    return cast(
        tuple[Tensor, Tensor], _forward_impl(q, k, v, cu_seqlens, max_seqlen, window, scale, dropout_p, seed, True)
    )


@_forward_op.register_fake
def _(q, k, v, cu_seqlens, max_seqlen, window, scale, dropout_p, seed):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide_dtype(q))


@torch.library.custom_op("glimodern::attention_varlen_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int | None,
    scale: float,
    dropout_p: float,
    seed: int,
) -> Grads:
    return _backward_impl(grad_out, q, k, v, out, lse, cu_seqlens, max_seqlen, window, scale, dropout_p, seed)


@_backward_op.register_fake
def _(grad_out, q, k, v, out, lse, cu_seqlens, max_seqlen, window, scale, dropout_p, seed):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    tensors = (grad_out, *ctx.saved_tensors)
    run = _backward_impl if direct(needs_grad(*tensors), tensors) else _backward_op
    grads = run(*tensors, *ctx.options)
    wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None, None)


_forward_op.register_autograd(_autograd, setup_context=_setup)


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
) -> Tensor:
    """Bidirectional attention inside each text: out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j.

    q, k, v [N, heads, head_dim] (fp32, fp16, bf16 or fp64, promoted to the widest among them; all three differentiable;
    slices of one fused qkv are read in place); cu_seqlens int32 [texts + 1]: the texts' bounds in 0..N; max_seqlen at
    least the longest text's tokens. Query i sees keys j of its text with |i - j| <= window (None: all; ModernBERT's
    local_attention is twice this). scale: 1 / sqrt(head_dim) unless given. -> [N, heads, head_dim] in that dtype.
    dropout_p drops probabilities by a counter-based generator, a function of seed, head, query and key alone
    (reference.attention_keep); on CUDA in half precision by the device's own generator, whatever the seed. offsets:
    cu_seqlens on the host, for tensors elsewhere: without gradients, those backends that must know them then need not
    read cu_seqlens, which waits for the device. Saved for backward: the inputs, the result and one logsumexp a head and
    query.

    CUDA tensors in half precision take FlashAttention (the package flash-attn, else PyTorch's varlen_attn); where that
    has no dropout or not this head_dim, and there is no window, PyTorch's attention text by text. CPU tensors take the
    C++ kernels; all else tiles of matrix products, which never make an N x N tensor.
    Raises ValueError or TypeError, with what was expected, for bad shapes, dtypes, devices and bounds.
    """
    _check_inputs(q, k, v, cu_seqlens, max_seqlen, window, dropout_p)
    q, k, v = promote(q, k, v)
    dim = q.shape[-1]
    scale = 1.0 / math.sqrt(max(dim, 1)) if scale is None else float(scale)
    if backend("attention_varlen", q) == "flash":
        if takes_flash(q.device.type, q.dtype, dim, dropout_p):
            flash = cast(Callable[..., Tensor], dispatch.flash_attention())
            drop = {"dropout_p": float(dropout_p)} if dropout_p > 0.0 else {}
            return flash(q, k, v, cu_seqlens.to(torch.int32), int(max_seqlen), scale, window, **drop)
        if window is None:
            bounds = _offsets(cu_seqlens if offsets is None else offsets, len(q), max_seqlen)
            return _text_by_text(q, k, v, bounds, scale, float(dropout_p))
        dispatch.warn_once(
            "attention_varlen runs in plain PyTorch, slowly: FlashAttention takes head dims of 8, 16 .. "
            f"{_FLASH_MAX_DIM} only, and dropout only in the package flash-attn, got dropout_p {dropout_p} and "
            f"head_dim {dim} with a window"
        )
    options = (int(max_seqlen), window, scale, float(dropout_p), int(seed))
    if direct(needs_grad(q, k, v), (q, k, v)):
        return _forward_impl(q, k, v, cu_seqlens, *options, offsets=offsets)[0]
    return cast(Tensor, _forward_op(q, k, v, cu_seqlens, *options)[0])
