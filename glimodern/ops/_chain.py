"""Chain: operators on the rows of a packed batch, one after the other by one call, for inference on CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch
from ._linear_packed import PackedWeight, cpp_weight
from ._span import text_bounds
from .dispatch import BF16, FP32, storage


class Columns(NamedTuple):
    """A part of a buffer, from one column on."""

    buffer: int
    first: int = 0


class Chain:
    """Steps between buffers [rows, width] of one dtype, known by number; buffer 0, of `width`, is the input.

    Each step is the operator of its name with the same bits, without Python between two of them and with its results
    in one workspace: an encoder's layers on one sentence take less time than their calls. Weights are read where they
    lie, kept alive, and must not be moved. A chain is bound to its process: it cannot be copied or pickled. The last
    step's result is the chain's; no other step may use its buffer.

    Steps raise ValueError for widths that do not fit.
    """

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.dtype = dtype
        self._steps = dispatch.extension.Chain(storage(dtype))
        self._alive: list[Any] = []
        self._widths: list[int] = []
        self._tables: list[int] = []  # the width of each
        self._last = 0
        self._keeps = False
        self.buffer(width)

    @staticmethod
    def problem(x: Tensor) -> str:
        """Why no chain can take x and what is computed from it; empty if one can."""
        if x.device.type != "cpu":
            return f"a chain runs on the CPU, got {x.device}"
        if x.dtype not in (FP32, BF16):
            return f"a chain computes in fp32 or bf16, got {x.dtype}"
        names = ("linear_packed", "attention_varlen", "add_layer_norm", "rotary")
        others = {op for op in names if dispatch.choose(op, x.device.type, x.dtype)[0] != "cpp"}
        if others:
            return f"a chain runs in C++ on the CPU, but {', '.join(sorted(others))} would not"
        if dispatch.needs_grad(x) or not dispatch.direct(False, (x,)):
            return "a chain has no gradients and cannot be compiled"
        return "autocast is on" if torch.is_autocast_enabled("cpu") else ""

    def buffer(self, width: int) -> int:
        """A new buffer's number."""
        self._widths.append(width)
        return int(self._steps.buffer(width))

    def _fit(self, what: str, buffer: int, width: int, first: int = 0) -> None:
        """attention reads a part of a buffer's columns, all else the whole of it."""
        there = self._widths[buffer]
        if first + width > there or (what != "attention" and width != there):
            raise ValueError(
                f"Chain.{what}: buffer {buffer} must hold {width} columns from {first} on, got {there} in all"
            )

    def linear(self, src: int, packed: PackedWeight, dst: int | None = None, activation: str = "none") -> int:
        """`linear_packed`. dst None: a new buffer; returns its number."""
        dst = self.buffer(packed.outputs) if dst is None else dst
        self._fit("linear", src, packed.inputs)
        self._fit("linear", dst, packed.outputs)
        if (activation == "geglu") != packed.gated:
            raise ValueError(f"Chain.linear: gated={packed.gated} does not fit the activation {activation!r}")
        kind = getattr(dispatch.extension.Activation, activation)
        self._steps.linear(src, dst, packed.inputs, packed.outputs, *cpp_weight(packed.tensors), kind)
        self._alive.append(packed)
        self._last = dst
        return dst

    def add_layer_norm(
        self,
        x: int,
        residual: int | None,
        dst: int,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        store_sum: bool = False,
    ) -> None:
        """`add_layer_norm`; store_sum: the sum takes the residual's place, the input's too."""
        width = self._widths[x]
        for buffer in (dst,) if residual is None else (dst, residual):
            self._fit("add_layer_norm", buffer, width)
        for y in (weight,) if bias is None else (weight, bias):
            if y.shape != (width,) or y.dtype not in (FP32, BF16) or y.dtype != weight.dtype or not y.is_contiguous():
                raise ValueError(
                    f"Chain.add_layer_norm: weight and bias must be contiguous [{width}], both fp32 or both bf16, got "
                    f"{y.dtype} {tuple(y.shape)}"
                )
        total = residual if store_sum else None
        places = (-1 if n is None else n for n in (residual, dst, total))
        address = 0 if bias is None else bias.data_ptr()
        self._steps.add_layer_norm(x, *places, storage(weight.dtype), weight.data_ptr(), address, eps)
        self._alive += [weight, bias]
        self._last = dst

    def rotary(self, qkv: int, dst: int, table: int, heads: int) -> None:
        """`rotary` of the queries and keys of a fused qkv [rows, 3, heads, head_dim] by the table of this number."""
        half = self._widths[qkv] // (6 * heads)
        self._fit("rotary", qkv, 6 * heads * half)
        self._fit("rotary", dst, 4 * heads * half)
        self._tables += [half] * (table + 1 - len(self._tables))
        self._tables[table] = half
        self._steps.rotary(qkv, dst, table, heads, half)
        self._last = dst

    def attention(
        self,
        q: Columns,
        k: Columns,
        v: Columns,
        dst: int,
        heads: int,
        window: int | None = None,
        scale: float | None = None,
    ) -> None:
        """`attention_varlen`."""
        dim = self._widths[dst] // heads
        self._fit("attention", dst, heads * dim)
        for part in (q, k, v):
            self._fit("attention", part.buffer, heads * dim, part.first)
        reach = -1 if window is None else window
        scale = 1.0 / math.sqrt(max(dim, 1)) if scale is None else scale
        self._steps.attention(*q, *k, *v, dst, heads, dim, reach, scale)
        self._last = dst

    def keep(self, *sources: int) -> list[int]:
        """From here on only the rows asked for in `run`: new buffers that hold those of the sources."""
        kept = [self.buffer(self._widths[src]) for src in sources]
        for src, dst in zip(sources, kept, strict=True):
            self._steps.keep(src, dst)
        self._steps.kept_from_here()
        self._keeps, self._last = True, kept[-1]
        return kept

    def run(
        self, x: Tensor, cu_seqlens: Tensor, kept: Tensor | None, tables: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> Tensor:
        """x [rows, width], which steps may overwrite -> the last step's [rows, its width], or [len(kept), ..].

        cu_seqlens int32 [texts + 1]; kept int64, rows of x, or None for a chain without `keep`; tables: cos and sin
        [rows, head_dim / 2] each. Raises ValueError for x, rows, offsets or tables of another shape, dtype or device.
        """
        width = self._widths[0]
        if x.ndim != 2 or x.shape[1] != width or x.dtype != self.dtype or x.device.type != "cpu":
            raise ValueError(f"Chain.run: x must be {self.dtype} [rows, {width}], got {x.dtype} {tuple(x.shape)}")
        rows = len(x)
        shapes, wanted = [(cos.shape, sin.shape) for cos, sin in tables], [(rows, half) for half in self._tables]
        if shapes != [(shape, shape) for shape in wanted]:
            raise ValueError(f"Chain.run: tables must be cos and sin of {wanted}, got {[tuple(a) for a, _ in shapes]}")
        if (kept is not None) != self._keeps:
            raise ValueError(f"Chain.run: kept must {'' if self._keeps else 'not '}be given for this chain")
        if kept is not None and kept.numel():
            first, last = torch.stack(torch.aminmax(kept)).tolist()
            if not 0 <= first <= last < rows:
                raise ValueError(f"Chain.run: kept must be rows of x, 0 to {rows - 1}, got {first} to {last}")
        text_bounds("cu_seqlens", cu_seqlens, rows)
        x, cu_seqlens = x.contiguous(), cu_seqlens.to(torch.int32).contiguous()
        kept = cu_seqlens.new_empty(0, dtype=torch.int64) if kept is None else kept.to(torch.int64).contiguous()
        angles = [y.to(FP32).contiguous() for table in tables for y in table]
        workspace = x.new_empty(self._steps.workspace_bytes(max(rows, len(kept))) + 64, dtype=torch.uint8)
        out = x.new_empty(len(kept) if self._keeps else rows, self._widths[self._last])
        self._steps.run(
            x.data_ptr(), -(-workspace.data_ptr() // 64) * 64, rows, cu_seqlens.data_ptr(), len(cu_seqlens) - 1,
            [y.data_ptr() for y in angles], kept.data_ptr(), len(kept), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out
