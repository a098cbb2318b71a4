"""What span_scores, span_loss, span_entities and span_vectors share: checks, layouts, inputs of the extension."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glimodern import reference

from ._check import check_dropout, check_offsets, check_tensors
from .dispatch import BF16, storage, wide_dtype

Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # of, or like, a, b, u, c


def check_span_inputs(
    op: str,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
) -> None:
    """Shapes, dtypes and devices: what can be known without reading the tensors."""
    offsets = {"cu_words": cu_words, "cu_types": cu_types}
    check_tensors(op, {"a": a, "b": b, "u": u, "c": c}, offsets)
    for name, x in offsets.items():
        check_offsets(op, name, x)
    if a.ndim != 2 or b.shape != a.shape:
        raise ValueError(f"{op}: a and b must both be [words, H], got {tuple(a.shape)} and {tuple(b.shape)}")
    if u.ndim != 2 or u.shape[1] != a.shape[1]:
        raise ValueError(f"{op}: u must be [types, {a.shape[1]}] (H as in a), got {tuple(u.shape)}")
    if c.shape != u.shape[:1]:
        raise ValueError(f"{op}: c must be [{u.shape[0]}] (one bias a type of u), got {tuple(c.shape)}")
    if cu_words.shape != cu_types.shape:
        raise ValueError(
            f"{op}: cu_words and cu_types must both be [texts + 1], got {len(cu_words)} and {len(cu_types)} entries"
        )
    if max_width < 1:
        raise ValueError(f"{op}: max_width must be at least 1, got {max_width}")
    check_dropout(op, dropout_p)


def text_bounds(name: str, cu: Tensor | Sequence[int], rows: int) -> list[int]:
    """cu [texts + 1] as a list, checked to rise from 0 to `rows`; reads a tensor, which waits for its device."""
    bounds: list[int] = cu.tolist() if isinstance(cu, Tensor) else list(cu)
    if bounds[0] != 0 or bounds[-1] != rows or any(x > y for x, y in zip(bounds, bounds[1:], strict=False)):
        shown = bounds if len(bounds) <= 8 else [*bounds[:4], "...", *bounds[-3:]]
        raise ValueError(f"{name} must rise from 0 to {rows} (cumulative lengths, one more than texts), got {shown}")
    return bounds


def stored(x: Tensor) -> Tensor:
    """x as the extension reads it, contiguous: fp32, bf16 or fp64 as they are, fp16 as fp32."""
    return x.detach().to(BF16 if x.dtype == BF16 else wide_dtype(x)).contiguous()


class CppInputs:
    """What the extension reads, kept alive while it does: a, b, u as they are stored (fp32, bf16 or fp64; fp16 as
    fp32), c in `wide`, the dtype of all that is computed (fp32, or fp64 for fp64)."""

    def __init__(
        self,
        floats: Sequence[Tensor],
        cu_words: Tensor,
        cu_types: Tensor,
        max_width: int,
        dropout_p: float,
        seed: int,
    ) -> None:
        self.wide = wide_dtype(floats[0])
        self.floats = [*map(stored, floats[:3]), stored(floats[3].to(self.wide))]
        self.cu = [x.to(torch.int32).contiguous() for x in (cu_words, cu_types)]
        a, _, u, _ = self.floats
        addresses = [x.data_ptr() for x in (*self.floats, *self.cu)]
        sizes = (len(self.cu[0]) - 1, a.shape[0], u.shape[0], a.shape[1], max_width)
        self.arguments = (*addresses, *sizes, dropout_p, seed & 0xFFFFFFFF, storage(a.dtype))

    def zero_grads(self) -> list[Tensor]:
        return [torch.zeros_like(x, dtype=self.wide) for x in self.floats]


def plain_grads(
    grad_logits: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    c: Tensor,
    cu_words: Tensor,
    cu_types: Tensor,
    max_width: int,
    dropout_p: float,
    seed: int,
) -> Grads:
    """The backward pass of ARCHITECTURE ("The fold") in plain PyTorch: autograd cannot record inside a custom op."""
    da, db, du, dc = (torch.zeros_like(x) for x in (a, b, u, c))
    parts = split_scores(grad_logits, cu_words, cu_types, max_width)
    word_bounds, type_bounds = cu_words.tolist(), cu_types.tolist()
    for part, w0, w1, t0, t1 in zip(parts, word_bounds, word_bounds[1:], type_bounds, type_bounds[1:], strict=False):
        ends = torch.arange(w1 - w0, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        inside = ends < w1 - w0
        x = reference.span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)[inside]
        grad = part[inside]
        dx = torch.where(x > 0.0, grad @ u[t0:t1] / (1.0 - dropout_p), 0.0)
        da[w0:w1].index_add_(0, inside.nonzero()[:, 0], dx)
        db[w0:w1].index_add_(0, ends[inside], dx)
        du[t0:t1] = grad.T @ x
        dc[t0:t1] = grad.sum(0)
    return da, db, du, dc


def widen(a: Tensor, b: Tensor, u: Tensor, c: Tensor) -> Grads:
    wide = wide_dtype(a)
    return a.to(wide), b.to(wide), u.to(wide), c.to(wide)


def narrow(a: Tensor, da: Tensor, db: Tensor, du: Tensor, dc: Tensor) -> Grads:
    return da.to(a.dtype), db.to(a.dtype), du.to(a.dtype), dc.to(a.dtype)


def split_scores(logits: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int) -> list[Tensor]:
    """The logits of `span_scores` as one view [words, max_width, types] a text. Reads the two cu tensors."""
    shapes = list(zip(cu_words.diff().tolist(), cu_types.diff().tolist(), strict=True))
    wanted = sum(words * types for words, types in shapes) * max_width
    if logits.shape != (wanted,):
        raise ValueError(
            f"split_scores: logits must be [{wanted}] for these bounds and max_width, got {tuple(logits.shape)}"
        )
    parts = logits.split([words * max_width * types for words, types in shapes])
    return [part.view(words, max_width, types) for part, (words, types) in zip(parts, shapes, strict=True)]
