"""Chain: operators on the rows of a packed batch, run one after the other by one call, for inference on CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern.reference import RelativePositions

from . import dispatch
from ._attention_varlen import check_positions, check_rows
from ._check import text_offsets
from ._linear_packed import PackedWeight, check_gate, cpp_update, cpp_weight
from ._low_rank import LowRank
from .dispatch import BF16, FP32, storage

_ALIGNMENT = 64  # bytes


class Columns(NamedTuple):
    """Columns of a buffer, from `first` on."""

    buffer: int
    first: int = 0


class Chain:
    """Steps between numbered buffers [rows, width] of one dtype; buffer 0, of `width`, is the input.

    Each step gives the same bits as the operator of its name. No Python runs between two steps, and their results share
    one workspace, so an encoder's layers on one sentence take less time than separate calls. Weights are read in place,
    are kept alive, and must not be moved. A chain is bound to its process: it cannot be copied or pickled. The last
    step's result is the chain's; no other step may use its buffer.

    dtype: fp32 or bf16. Steps raise ValueError for widths that do not fit.
    """

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.dtype = dtype
        self._steps = dispatch.extension.Chain(storage(dtype))
        self._alive: list[Any] = []
        self._widths: list[int] = []
        self._table_widths: list[int] = []
        self._last = 0
        self._keeps = False
        self._low_rank: dict[int, int] = {}  # rank -> the buffer that low-rank updates share
        self.buffer(width)

    @staticmethod
    def problem(x: Tensor) -> str:
        """Why no chain can take x and compute what follows from it; empty if one can."""
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
        """Make a buffer and return its number."""
        self._widths.append(width)
        return int(self._steps.buffer(width))

    def _check_width(self, argument: str, buffer: int, width: int) -> None:
        actual = self._widths[buffer]
        if width != actual:
            raise ValueError(f"{argument}: expected a buffer of {width} columns, got buffer {buffer} of {actual}")

    def linear(
        self,
        src: int,
        packed: PackedWeight,
        dst: int | None = None,
        activation: str = "none",
        low_rank: LowRank | None = None,
    ) -> int:
        """Append `linear_packed` from buffer src to dst (None: a new buffer); return dst."""
        dst = self.buffer(packed.outputs) if dst is None else dst
        self._check_width("src", src, packed.inputs)
        self._check_width("dst", dst, packed.outputs)
        check_gate(activation, packed)
        function = getattr(dispatch.extension.Activation, activation)
        z, rank, panels = -1, 0, packed.panels
        if low_rank is not None:
            low_rank.check_layout(packed)
            rank, panels = low_rank.down.outputs, low_rank.up.panels
            if rank not in self._low_rank:
                self._low_rank[rank] = self.buffer(rank)
            z = self.linear(src, low_rank.down, self._low_rank[rank])
        rank, _, up = cpp_update(rank, None, panels)
        self._steps.linear(src, dst, packed.inputs, packed.outputs, *cpp_weight(packed.tensors), function, rank, z, up)
        self._alive += [packed, low_rank]
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
        """Append `add_layer_norm`; store_sum: the sum overwrites the residual, even if that is the input."""
        self._add_norm(x, residual, dst, weight, bias, eps, store_sum, rms=False)

    def add_rms_norm(
        self, x: int, residual: int | None, dst: int, weight: Tensor, eps: float, store_sum: bool = False
    ) -> None:
        """Append `add_rms_norm`; store_sum as in `add_layer_norm`."""
        self._add_norm(x, residual, dst, weight, None, eps, store_sum, rms=True)

    def _add_norm(
        self,
        x: int,
        residual: int | None,
        dst: int,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        store_sum: bool,
        rms: bool,
    ) -> None:
        width = self._widths[x]
        self._check_width("dst", dst, width)
        if residual is not None:
            self._check_width("residual", residual, width)
        for name, y in (("weight", weight), ("bias", weight if bias is None else bias)):
            if y.shape != (width,) or y.dtype not in (FP32, BF16) or y.dtype != weight.dtype or not y.is_contiguous():
                raise ValueError(
                    f"{name}: expected a contiguous tensor [{width}] in fp32 or bf16, weight and bias alike, got "
                    f"{y.dtype} {tuple(y.shape)}"
                )
        total = residual if store_sum else None
        buffers = (-1 if n is None else n for n in (residual, dst, total))
        address = 0 if bias is None else bias.data_ptr()
        self._steps.add_layer_norm(x, *buffers, storage(weight.dtype), weight.data_ptr(), address, eps, rms)
        self._alive += [weight, bias]
        self._last = dst

    def _check_columns(self, argument: str, columns: Columns, width: int) -> None:
        actual = self._widths[columns.buffer]
        if columns.first + width > actual:
            raise ValueError(
                f"{argument}: expected {width} columns from {columns.first} on, got buffer {columns.buffer} of {actual}"
            )

    def rotary(self, x: Columns, dst: int, table: int, heads: int) -> None:
        """Append `rotary` of these heads, columns of a buffer, to dst [rows, heads, head_dim], by this table of `run`.

        Queries and keys that lie side by side are rotated as one, with the heads of both.
        """
        half = self._widths[dst] // (2 * heads)
        self._check_width("dst", dst, 2 * heads * half)
        self._check_columns("x", x, 2 * heads * half)
        self._table_widths += [half] * (table + 1 - len(self._table_widths))
        self._table_widths[table] = half
        self._steps.rotary(*x, dst, table, heads, half)
        self._last = dst

    def repeat_heads(self, src: int, dst: int, heads: int, repeats: int) -> None:
        """Append dst [rows, heads * repeats, head_dim], each head of src [rows, heads, head_dim] several times.

        So the queries of a group find their shared keys and values.
        """
        self._check_width("src", src, self._widths[src] // heads * heads)
        self._check_width("dst", dst, repeats * self._widths[src])
        self._steps.repeat_heads(src, dst, heads, repeats)
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
        positions: RelativePositions | None = None,
    ) -> None:
        """Append `attention_varlen`, which reads columns of buffers.

        positions: contiguous on the CPU; rows in int32, c2p and p2c in the chain's dtype, bias in fp32. Each run reads
        the tables; the rows must not change.
        """
        dim = self._widths[dst] // heads
        for name, columns in (("q", q), ("k", k), ("v", v)):
            self._check_columns(name, columns, heads * dim)
        side = -1 if window is None else window
        scale = 1.0 / math.sqrt(max(dim, 1)) if scale is None else scale
        terms = (0, 0, 0, 0, 0, 0) if positions is None else self._position_arguments(positions, heads, dim)
        self._steps.attention(*q, *k, *v, dst, heads, dim, side, scale, *terms)
        self._alive.append(positions)
        self._last = dst

    def _position_arguments(self, positions: RelativePositions, heads: int, dim: int) -> tuple[int, ...]:
        """Check positions as `attention_varlen` does; rows' address and reach, table rows, the tables' addresses."""
        check_positions(positions, torch.empty(0, heads, dim, dtype=self.dtype, device="cpu"))
        dtypes = {"rows": torch.int32, "c2p": self.dtype, "p2c": self.dtype, "bias": FP32}
        for name, x in positions._asdict().items():
            if x is not None and (x.dtype != dtypes[name] or not x.is_contiguous()):
                raise ValueError(
                    f"positions.{name}: expected a contiguous tensor in {dtypes[name]}, got {x.dtype} with strides "
                    f"{x.stride()}"
                )
        rows, *tables = positions
        count = next(len(x) for x in tables if x is not None)
        check_rows(rows, count)
        return rows.data_ptr(), len(rows) // 2, count, *(0 if x is None else x.data_ptr() for x in tables)

    def keep(self, *sources: int) -> list[int]:
        """Continue with the rows asked for in `run` alone; return new buffers that hold those of the sources."""
        kept = [self.buffer(self._widths[src]) for src in sources]
        for src, dst in zip(sources, kept, strict=True):
            self._steps.keep(src, dst)
        self._steps.kept_from_here()
        self._keeps, self._last = True, kept[-1]
        return kept

    def run(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        kept: Tensor | None,
        tables: Sequence[tuple[Tensor, Tensor]] = (),
        *,
        check_offsets: bool = True,
    ) -> Tensor:
        """Run the steps on x [rows, width], which they may overwrite; return the last step's result.

        cu_seqlens: int32 [texts + 1]. kept: int64, rows of x; None for a chain without `keep`. tables: cos and sin
        [rows, head_dim / 2] each. check_offsets: as in `attention_varlen`.

        Returns [rows, the last step's width], or [len(kept), that width].

        Raises ValueError for x, rows, offsets or tables of another shape, dtype or device.
        """
        width = self._widths[0]
        if x.ndim != 2 or x.shape[1] != width or x.dtype != self.dtype or x.device.type != "cpu":
            raise ValueError(
                f"x: expected {self.dtype} [rows, {width}] on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}"
            )
        rows = len(x)
        expected = [(rows, half) for half in self._table_widths]
        if [(cos.shape, sin.shape) for cos, sin in tables] != [(shape, shape) for shape in expected]:
            raise ValueError(
                f"tables: expected cos and sin of shapes {expected}, got {[tuple(cos.shape) for cos, _ in tables]}"
            )
        if (kept is not None) != self._keeps:
            raise ValueError(
                "kept: expected rows for a chain with keep(), got None"
                if self._keeps
                else "kept: expected None for a chain without keep(), got rows"
            )
        if kept is not None and kept.numel():
            first, last = torch.stack(torch.aminmax(kept)).tolist()
            if not 0 <= first <= last < rows:
                raise ValueError(f"kept: expected rows of x, 0 to {rows - 1}, got {first} to {last}")
        if check_offsets:
            text_offsets("cu_seqlens", cu_seqlens, rows)
        x, cu_seqlens = x.contiguous(), cu_seqlens.to(torch.int32).contiguous()
        kept = cu_seqlens.new_empty(0, dtype=torch.int64) if kept is None else kept.to(torch.int64).contiguous()
        angles = [y.to(FP32).contiguous() for table in tables for y in table]
        nbytes = self._steps.workspace_bytes(max(rows, len(kept))) + _ALIGNMENT
        workspace = x.new_empty(nbytes, dtype=torch.uint8)
        aligned = workspace.data_ptr() + -workspace.data_ptr() % _ALIGNMENT
        out = x.new_empty(len(kept) if self._keeps else rows, self._widths[self._last])
        self._steps.run(
            x.data_ptr(), aligned, rows, cu_seqlens.data_ptr(), len(cu_seqlens) - 1, [y.data_ptr() for y in angles],
            kept.data_ptr(), len(kept), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out
