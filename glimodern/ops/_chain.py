"""Chain: operators on the rows of a packed batch, one after the other by one call, for inference on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern.ops import dispatch
from glimodern.ops._linear_packed import PackedWeight
from glimodern.ops.dispatch import BF16, FP32, storage


class Columns(NamedTuple):
    """A part of a buffer, from one column on."""

    buffer: int
    first: int = 0


class Chain:
    """Steps between buffers [rows, width] of one dtype, known by number; buffer 0, of `width`, is the input.

    Each step is the operator of its name with the same bits, without Python between two of them and with its results
    in one workspace: an encoder's layers on one sentence take less time than their calls. Weights are read where they
    lie, and kept alive. A chain is bound to its process: it cannot be copied or pickled.
    """

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.dtype = dtype
        self._steps = dispatch.extension.Chain(storage(dtype))
        self._alive: list[Any] = []
        self._widths: list[int] = []
        self._tables = 0
        self.buffer(width)

    @staticmethod
    def problem(x: Tensor) -> str:
        """Why no chain can take x and what is computed from it; empty if one can."""
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

    def linear(self, src: int, packed: PackedWeight, dst: int | None = None, activation: str = "none") -> int:
        """`linear_packed`. dst None: a new buffer; returns its number."""
        dst = self.buffer(packed.outputs) if dst is None else dst
        kind = getattr(dispatch.extension.Activation, activation)
        self._steps.linear(src, dst, packed.inputs, packed.outputs, *packed.cpp_weight(), kind)
        self._alive.append(packed)
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
        """`add_layer_norm`; store_sum: the sum takes the residual's place."""
        total = residual if store_sum else None
        places = (-1 if n is None else n for n in (residual, dst, total))
        address = 0 if bias is None else bias.data_ptr()
        self._steps.add_layer_norm(x, *places, storage(weight.dtype), weight.data_ptr(), address, eps)
        self._alive += [weight, bias]

    def rotary(self, qkv: int, dst: int, table: int, heads: int) -> None:
        """`rotary` of the queries and keys of a fused qkv [rows, 3, heads, head_dim] by the table of this number."""
        self._tables = max(self._tables, table + 1)
        self._steps.rotary(qkv, dst, table, heads, self._widths[qkv] // (6 * heads))

    def attention(
        self, q: Columns, k: Columns, v: Columns, dst: int, heads: int, window: int | None = None, scale: float = 0.0
    ) -> None:
        """`attention_varlen`; scale 0: 1 / sqrt(head_dim)."""
        dim = self._widths[dst] // heads
        reach = -1 if window is None else window
        self._steps.attention(*q, *k, *v, dst, heads, dim, reach, scale or dim**-0.5)

    def keep(self, *sources: int) -> list[int]:
        """From here on only the rows asked for in `run`: new buffers that hold those of the sources."""
        kept = [self.buffer(self._widths[src]) for src in sources]
        for src, dst in zip(sources, kept, strict=True):
            self._steps.keep(src, dst)
        self._steps.kept_from_here()
        return kept

    def run(self, x: Tensor, cu_seqlens: Tensor, kept: Tensor, tables: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """x [rows, width] -> the last step's buffer [len(kept), its width].

        cu_seqlens int32 [texts + 1], right for x; kept int64, rows of x; tables: cos and sin fp32 [rows, head_dim / 2].
        Raises ValueError for x of another shape or dtype, for too few tables, and for rows that x does not have.
        """
        wanted = (len(x), self._widths[0])
        if tuple(x.shape) != wanted or x.dtype != self.dtype or len(tables) < self._tables:
            raise ValueError(
                f"Chain.run: x must be {self.dtype} [rows, {self._widths[0]}] and {self._tables} tables given, got "
                f"{x.dtype} {tuple(x.shape)} and {len(tables)}"
            )
        if kept.numel() and not 0 <= (ends := torch.stack(torch.aminmax(kept)).tolist())[0] <= ends[1] < len(x):
            raise ValueError(f"Chain.run: kept must be rows of x, 0 to {len(x) - 1}, got {ends[0]} to {ends[1]}")
        x, cu_seqlens, kept = x.contiguous(), cu_seqlens.to(torch.int32).contiguous(), kept.contiguous()
        angles = [y.to(FP32).contiguous() for table in tables for y in table]
        bytes_needed = self._steps.workspace_bytes(max(len(x), len(kept)))
        workspace = torch.empty(bytes_needed + 64, dtype=torch.uint8)
        out = x.new_empty(len(kept), self._widths[-1])
        self._steps.run(
            x.data_ptr(), -(-workspace.data_ptr() // 64) * 64, len(x), cu_seqlens.data_ptr(), len(cu_seqlens) - 1,
            [y.data_ptr() for y in angles], kept.data_ptr(), len(kept), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out
