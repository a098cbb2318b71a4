"""Bidirectional attention over packed texts: every query sees the keys of its own text, or of a window around it.

    out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j,      j in the text of i, |i - j| <= window (if one is given)

q, k, v [N, heads, head_dim] -> [N, heads, head_dim]; N tokens of all texts in one row, `Packing` says where they end.
Nothing is padded and no mask reaches over texts. What runs, by the first rule that fits:

1. CUDA, fp16 or bf16, no dropout: `torch.nn.attention.varlen.varlen_attn` (FlashAttention, part of PyTorch).
2. Whole texts, no dropout, a text of more than `_SHORT` tokens: PyTorch's scaled_dot_product_attention, text by text.
3. All else: tiles of matrix products. A tile is some queries of one text and all keys they may see, so that a windowed
   layer costs O(N * window) and a text of 8,192 tokens never makes an 8,192 x 8,192 tensor. The probabilities are kept
   for the backward pass while a query has at most `_SHORT` keys on average; beyond that they are computed again.

Softmax and its statistics are at least fp32. With few tokens a text, tiles beat scaled_dot_product_attention on CPUs,
whose dropout path is slower still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dropout import keep_probability, random_keep

_SHORT = 256  # tokens; up to here a text's whole probability matrix is one tile (measured: see the module docstring)
_TILE = _SHORT * _SHORT  # elements a head of the largest tile of a longer text
_MIN_ROWS = 32  # queries a tile has at least, so that a matrix product is worth its call


class Tile(NamedTuple):
    """Queries [q0, q1) against keys [k0, k1), token numbers in the packed row."""

    q0: int
    q1: int
    k0: int
    k1: int


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the texts of a packed batch lie, with what every layer asks about it computed once.

    cu_seqlens int32 [b + 1] (the tensor, for kernels), offsets the same on the host, max_seqlen the longest text.
    """

    cu_seqlens: Tensor
    offsets: tuple[int, ...]
    max_seqlen: int
    _masks: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict, repr=False)
    _tiles: dict[int | None, list[Tile]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> Packing:
        """Check cu_seqlens against the number of tokens; the one host synchronisation of a forward pass."""
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() == 0:
            raise ValueError(
                f"cu_seqlens must be int32 [texts + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}; "
                "it holds 0 and the end of every text"
            )
        offsets = tuple(cu_seqlens.tolist())
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
        if offsets[0] != 0 or offsets[-1] != tokens or min(lengths, default=0) < 0:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the number of tokens ({tokens}), got {offsets[0]} to {offsets[-1]}"
                + (", falling in between" if min(lengths, default=0) < 0 else "")
            )
        if max(lengths, default=0) > max_seqlen:
            raise ValueError(f"max_seqlen is {max_seqlen}, but the longest text of cu_seqlens has {max(lengths)}")
        return cls(cu_seqlens, offsets, max_seqlen)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False)]

    @cached_property
    def position_ids(self) -> Tensor:
        """int64 [N]: each token's place in its text, from 0."""
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens.diff().long()
        tokens = self.offsets[-1]
        firsts = torch.repeat_interleave(starts, lengths, output_size=tokens)
        return torch.arange(tokens, device=self.cu_seqlens.device) - firsts

    def tiles(self, window: int | None) -> list[Tile]:
        """The tiles that cover every query once; `window` None for whole texts."""
        if window not in self._tiles:
            self._tiles[window] = _tiles(self.offsets, window)
        return self._tiles[window]

    def band(self, tile: Tile, window: int, like: Tensor) -> Tensor | None:
        """Additive mask [queries, keys] of a tile: 0 where |i - j| <= window, -inf elsewhere; None if all is seen."""
        queries, keys, shift = tile.q1 - tile.q0, tile.k1 - tile.k0, tile.q0 - tile.k0
        if shift + queries - 1 <= window and keys - 1 - shift <= window:
            return None
        key = (queries, keys, shift, window)
        if key not in self._masks:
            distance = torch.arange(keys) - torch.arange(shift, shift + queries)[:, None]
            mask = torch.zeros(queries, keys, dtype=like.dtype).masked_fill_(distance.abs() > window, -torch.inf)
            self._masks[key] = mask.to(like.device)
        return self._masks[key]


def _tiles(offsets: Sequence[int], window: int | None) -> list[Tile]:
    tiles = []
    for start, end in zip(offsets, offsets[1:], strict=False):
        length = end - start
        reach = length if window is None else window
        if length <= min(_SHORT, 3 * reach):
            rows = max(length, 1)
        else:
            rows = max(_MIN_ROWS, _TILE // length if window is None else window)
        for q0 in range(start, end, rows):
            q1 = min(q0 + rows, end)
            tiles.append(Tile(q0, q1, max(start, q0 - reach), min(end, q1 + reach)))
    return tiles


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T) v inside each text; the module's docstring has formula, shapes and what runs.

    window: keys with |i - j| <= window are seen (None: all); scale: 1 / sqrt(head_dim) unless given;
    dropout_p: share of probabilities dropped (give 0 outside training).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout_p == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        cu, longest = packing.cu_seqlens, packing.max_seqlen
        reach = -1 if window is None else window
        return cast(Tensor, varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(reach, reach)))
    if window is None and dropout_p == 0.0 and packing.max_seqlen > _SHORT:
        return _text_by_text(q, k, v, packing, scale)
    with torch.autocast(q.device.type, enabled=False):  # q, k and v already have the dtype to compute in
        out = _TiledAttention.apply(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), packing, window, scale, dropout_p
        )
    return out.transpose(0, 1)


def _text_by_text(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float) -> Tensor:
    lengths = packing.lengths
    texts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            qt.transpose(0, 1)[None], kt.transpose(0, 1)[None], vt.transpose(0, 1)[None], scale=scale
        )[0].transpose(0, 1)
        for qt, kt, vt in texts
        if len(qt) > 0
    ]
    return torch.cat(outs)


class _TiledAttention(torch.autograd.Function):
    """Attention by matrix products, tile by tile; q, k, v and out head-major: [heads, N, head_dim].

    With P = softmax(scale * q k^T), M = P where kept, else 0, s = 1 / keep probability, O = s M V:
    dV = s M^T dO;  dP = s dO V^T;  D = rowsum(dO * O);  dS = M * dP - P * D;  dQ = scale dS K;  dK = scale dS^T Q.
    (D replaces rowsum(M * dP): the FlashAttention identity, https://arxiv.org/abs/2205.14135, appendix B.)
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None, scale: float, dropout_p: float
    ) -> Tensor:
        tiles = packing.tiles(window)
        seed = int(torch.randint(2**62, ())) if dropout_p > 0.0 else 0
        seen = sum((t.q1 - t.q0) * (t.k1 - t.k0) for t in tiles)
        keep_probabilities = any(ctx.needs_input_grad[:3]) and seen <= _SHORT * q.shape[1]
        saved: list[Tensor] = []
        out = q.new_empty(q.shape)
        inverse_keep = 1.0 / keep_probability(dropout_p)
        draws = _generator(seed, q.device)
        for tile in tiles:
            p, m = _probabilities(q, k, tile, packing, window, scale, dropout_p, draws)
            out[:, tile.q0 : tile.q1] = _product(m, v[:, tile.k0 : tile.k1], inverse_keep)
            if keep_probabilities:
                saved += [p, m]
        ctx.save_for_backward(q, k, v, out, *saved)
        ctx.arguments = (packing, window, scale, dropout_p, seed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *saved = ctx.saved_tensors
        packing, window, scale, dropout_p, seed = ctx.arguments
        inverse_keep = 1.0 / keep_probability(dropout_p)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk = torch.zeros_like(k, memory_format=torch.contiguous_format)  # a key may be in several tiles
        dv = torch.zeros_like(v, memory_format=torch.contiguous_format)
        d = (grad * out).sum(-1, keepdim=True, dtype=_wide(q.dtype)).to(q.dtype)
        draws = _generator(seed, q.device)
        for i, tile in enumerate(packing.tiles(window)):
            q0, q1, k0, k1 = tile
            if saved:
                p, m = saved[2 * i], saved[2 * i + 1]
            else:
                p, m = _probabilities(q, k, tile, packing, window, scale, dropout_p, draws)
            g = grad[:, q0:q1]
            ds = _product(g, v[:, k0:k1].transpose(1, 2), inverse_keep)
            if m is p:
                ds.sub_(d[:, q0:q1]).mul_(p)
            else:
                ds.mul_(m).addcmul_(p, d[:, q0:q1], value=-1.0)
            dq[:, q0:q1] = _product(ds, k[:, k0:k1], scale)
            dk[:, k0:k1] += _product(ds.transpose(1, 2), q[:, q0:q1], scale)
            dv[:, k0:k1] += _product(m.transpose(1, 2), g, inverse_keep)
        return dq, dk, dv, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _product(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """alpha * a b, batched over heads. (Writing into a slice directly makes PyTorch go head by head: slower.)"""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0.0, alpha=alpha)


def _probabilities(
    q: Tensor,
    k: Tensor,
    tile: Tile,
    packing: Packing,
    window: int | None,
    scale: float,
    dropout_p: float,
    draws: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A tile's softmax P [heads, queries, keys] and P with the dropped zeroed (the same tensor without dropout)."""
    rows, columns = q[:, tile.q0 : tile.q1], k[:, tile.k0 : tile.k1].transpose(1, 2)
    mask = None if window is None else packing.band(tile, window, q)
    if mask is None:
        scores = _product(rows, columns, scale)
    else:
        scores = torch.baddbmm(mask, rows, columns, beta=1.0, alpha=scale)
    p = torch.softmax(scores, -1, dtype=_wide(q.dtype)).to(q.dtype)
    if dropout_p == 0.0:
        return p, p
    return p, p * random_keep(p, dropout_p, draws)
