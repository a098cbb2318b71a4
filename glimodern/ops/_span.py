"""What span_scores, span_loss and span_entities share: their inputs, checks, and layouts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from ._check import check_dropout, check_max_width, check_offsets_shape, check_tensors, text_offsets
from .dispatch import BF16, accumulator_dtype, promote, storage

Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # da, db, du, dc; or of another operator's four float inputs


class SpanInputs(NamedTuple):
    """Arguments of span_scores, of which span_loss and span_entities have most: see `glimodern.ops.span_scores`."""

    a: Tensor
    b: Tensor
    u: Tensor
    c: Tensor
    cu_words: Tensor
    cu_types: Tensor
    max_width: int
    dropout_p: float
    seed: int

    @property
    def floats(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self[:4]

    def checked(self) -> "SpanInputs":
        """The inputs with a, b, u, c in their widest dtype; ValueError or TypeError for bad shapes, dtypes, devices."""
        a, b, u, c, cu_words, cu_types, max_width, dropout_p, _ = self
        offsets = {"cu_words": cu_words, "cu_types": cu_types}
        check_tensors({"a": a, "b": b, "u": u, "c": c}, offsets)
        for name, x in offsets.items():
            check_offsets_shape(name, x)
        if a.ndim != 2 or b.shape != a.shape:
            raise ValueError(f"a, b: expected one shape [words, H], got {tuple(a.shape)} and {tuple(b.shape)}")
        if u.ndim != 2 or u.shape[1] != a.shape[1]:
            raise ValueError(f"u: expected [types, {a.shape[1]}] (H as in a), got {tuple(u.shape)}")
        if c.shape != u.shape[:1]:
            raise ValueError(f"c: expected [{u.shape[0]}] (one bias per type of u), got {tuple(c.shape)}")
        if cu_words.shape != cu_types.shape:
            raise ValueError(
                f"cu_words, cu_types: expected the same length, texts + 1, got {len(cu_words)} and {len(cu_types)}"
            )
        check_max_width(max_width)
        check_dropout(dropout_p)
        a, b, u, c = promote(a, b, u, c)
        return SpanInputs(a, b, u, c, *self[4:])

    def offsets(self) -> tuple[list[int], list[int]]:
        """cu_words and cu_types on the host; ValueError unless they rise from 0 to the numbers of words and types."""
        return text_offsets("cu_words", self.cu_words, len(self.a)), text_offsets(
            "cu_types", self.cu_types, len(self.u)
        )

    def check_offsets(self) -> None:
        """ValueError for bad offsets on the CPU; elsewhere reading them would wait for the device."""
        if self.a.device.type == "cpu":
            self.offsets()

    def int32_offsets(self) -> tuple[Tensor, Tensor]:
        """cu_words and cu_types as kernels take them."""
        return self.cu_words.to(torch.int32), self.cu_types.to(torch.int32)

    def in_accumulator_dtype(self) -> "SpanInputs":
        dtype = accumulator_dtype(self.a)
        a, b, u, c = (x.to(dtype) for x in self.floats)
        return SpanInputs(a, b, u, c, *self[4:])

    def rounded(self, grads: Sequence[Tensor]) -> Grads:
        """Gradients of a, b, u, c in the dtype of a."""
        da, db, du, dc = (x.to(self.a.dtype) for x in grads)
        return da, db, du, dc


def stored(x: Tensor) -> Tensor:
    """x contiguous, in a dtype that the extension reads: fp32, bf16 and fp64 as they are, fp16 as fp32."""
    return x.detach().to(BF16 if x.dtype == BF16 else accumulator_dtype(x)).contiguous()


class CppInputs:
    """Arguments of the extension's span kernels; keeps the tensors alive that `arguments` has the addresses of.

    a, b, u are fp32, bf16 or fp64 (fp16 is converted to fp32); c, logits and gradients have `accumulator_dtype`.
    """

    def __init__(self, inputs: SpanInputs) -> None:
        self.accumulator_dtype = accumulator_dtype(inputs.a)
        self.floats = [*map(stored, inputs[:3]), stored(inputs.c.to(self.accumulator_dtype))]
        self.cu = [x.contiguous() for x in inputs.int32_offsets()]
        a, _, u, _ = self.floats
        addresses = [x.data_ptr() for x in (*self.floats, *self.cu)]
        sizes = (len(self.cu[0]) - 1, a.shape[0], u.shape[0], a.shape[1], inputs.max_width)
        self.arguments = (*addresses, *sizes, inputs.dropout_p, inputs.seed & 0xFFFFFFFF, storage(a.dtype))

    def zero_grads(self) -> list[Tensor]:
        """da, db, du, dc to add to."""
        return [torch.zeros_like(x, dtype=self.accumulator_dtype) for x in self.floats]


def plain_grads(grad_logits: Tensor, inputs: SpanInputs) -> Grads:
    """Gradients of a, b, u, c from those of the logits, in plain PyTorch and the inputs' dtype.

    The formulas are those of kernels/span_scores.py. Autograd cannot record inside a custom op.
    """
    a, b, u, c, cu_words, cu_types, max_width, dropout_p, seed = inputs
    da, db, du, dc = (torch.zeros_like(x) for x in (a, b, u, c))
    blocks = split_scores(grad_logits, cu_words, cu_types, max_width)
    words, types = cu_words.tolist(), cu_types.tolist()
    for block, w0, w1, t0, t1 in zip(blocks, words, words[1:], types, types[1:], strict=False):
        ends = torch.arange(w1 - w0, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        inside = ends < w1 - w0
        x = reference.span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)[inside]
        grad = block[inside]
        dx = torch.where(x > 0.0, grad @ u[t0:t1] / (1.0 - dropout_p), 0.0)
        da[w0:w1].index_add_(0, inside.nonzero()[:, 0], dx)
        db[w0:w1].index_add_(0, ends[inside], dx)
        du[t0:t1] = grad.T @ x
        dc[t0:t1] = grad.sum(0)
    return da, db, du, dc


def split_scores(logits: Tensor, cu_words: Tensor, cu_types: Tensor, max_width: int) -> list[Tensor]:
    """Cut the logits of `span_scores` up into one view [words, max_width, types] per text.

    Reads cu_words and cu_types, which waits for their device. Raises ValueError if logits has another length than
    these offsets and max_width make.
    """
    shapes = list(zip(cu_words.diff().tolist(), cu_types.diff().tolist(), strict=True))
    sizes = [words * max_width * types for words, types in shapes]
    if logits.shape != (sum(sizes),):
        raise ValueError(
            f"logits: expected [{sum(sizes)}], which cu_words, cu_types and max_width make, got {tuple(logits.shape)}"
        )
    blocks = zip(logits.split(sizes), shapes, strict=True)
    return [block.view(words, max_width, types) for block, (words, types) in blocks]
