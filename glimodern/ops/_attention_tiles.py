"""attention_varlen in plain PyTorch, for tensors that no kernel takes: tiles of matrix products.

A tile is some queries of one text and all keys that they see, so that a window costs O(N * window) and a text of 8,192
tokens never makes an 8,192 x 8,192 tensor. q, k, v and out are head-major here: [heads, N, head_dim]. Products have the
tensors' dtype, softmax and its statistics at least fp32. With P = softmax(scale * q k^T), and M = P / (1 - p) where the
dropout mask keeps an element, else 0:

    out = M V;  dV = M^T dO;  dS = M * (dO V^T) - P * rowsum(dO * out);  dQ = scale dS K;  dK = scale dS^T Q

(rowsum(dO * out) replaces rowsum(M * dP): https://arxiv.org/abs/2205.14135, appendix B.)
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glimodern import reference

from .dispatch import accumulator_dtype

_SHORT = 256  # tokens; up to here a text's whole probability matrix is one tile
_TILE = _SHORT * _SHORT  # elements per head of the largest tile of a longer text
_MIN_ROWS = 32  # least queries of a tile, so that a matrix product is worth its call


class Tile(NamedTuple):
    """Queries [q0, q1) and keys [k0, k1) of the text that begins at `start`; all are token indices of the batch."""

    start: int
    q0: int
    q1: int
    k0: int
    k1: int


class Options(NamedTuple):
    """Options of a call: see ops.attention_varlen."""

    window: int | None
    scale: float
    dropout_p: float
    seed: int


def tiles(offsets: Sequence[int], window: int | None) -> Iterator[Tile]:
    """Tiles that cover every query once; offsets: where the texts begin, and the last one's end."""
    for start, end in zip(offsets, offsets[1:], strict=False):
        length = end - start
        side = length if window is None else window
        if length <= min(_SHORT, 3 * side):
            rows = max(length, 1)
        else:
            rows = max(_MIN_ROWS, _TILE // length if window is None else window)
        for q0 in range(start, end, rows):
            q1 = min(q0 + rows, end)
            yield Tile(start, q0, q1, max(start, q0 - side), min(end, q1 + side))


def _scores(q: Tensor, k: Tensor, tile: Tile, options: Options) -> Tensor:
    """scale * q k^T [heads, queries, keys], at least fp32; -inf where a key is outside the window."""
    scores = torch.matmul(q[:, tile.q0 : tile.q1], k[:, tile.k0 : tile.k1].transpose(1, 2))
    scores = scores.to(accumulator_dtype(q)) * options.scale
    if options.window is not None:
        queries = torch.arange(tile.q0, tile.q1, device=q.device)
        keys = torch.arange(tile.k0, tile.k1, device=q.device)
        scores.masked_fill_((keys - queries[:, None]).abs() > options.window, -torch.inf)
    return scores


def _dropped(p: Tensor, tile: Tile, options: Options) -> Tensor:
    """M of P; without dropout the same tensor."""
    if options.dropout_p == 0.0:
        return p
    queries = torch.arange(tile.q0, tile.q1, device=p.device)
    keys = torch.arange(tile.k0 - tile.start, tile.k1 - tile.start, device=p.device)
    keep = reference.attention_keep(p.shape[0], queries, keys, options.dropout_p, options.seed)
    return torch.where(keep, p / (1.0 - options.dropout_p), 0.0)


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Sequence[int], options: Options) -> tuple[Tensor, Tensor]:
    """(out [heads, N, head_dim], logsumexp [heads, N] at least fp32)."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=accumulator_dtype(q))
    for tile in tiles(offsets, options.window):
        scores = _scores(q, k, tile, options)
        lse[:, tile.q0 : tile.q1] = torch.logsumexp(scores, -1)
        m = _dropped(torch.softmax(scores, -1), tile, options).to(q.dtype)
        out[:, tile.q0 : tile.q1] = m @ v[:, tile.k0 : tile.k1]
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Sequence[int], options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv [heads, N, head_dim]; computes P again from the logsumexp."""
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)  # a key may be in several tiles
    delta = (grad * out).sum(-1, keepdim=True, dtype=lse.dtype)
    for tile in tiles(offsets, options.window):
        queries, keys = slice(tile.q0, tile.q1), slice(tile.k0, tile.k1)
        p = (_scores(q, k, tile, options) - lse[:, queries, None]).exp_()
        m = _dropped(p, tile, options)
        ds = torch.matmul(grad[:, queries], v[:, keys].transpose(1, 2)).to(lse.dtype)
        if options.dropout_p > 0.0:
            ds = torch.where(m != 0.0, ds / (1.0 - options.dropout_p), 0.0)
        ds = (ds.sub_(delta[:, queries]).mul_(p) * options.scale).to(q.dtype)
        dq[:, queries] = ds @ k[:, keys]
        dk[:, keys] += ds.transpose(1, 2) @ q[:, queries]
        dv[:, keys] += m.to(q.dtype).transpose(1, 2) @ grad[:, queries]
    return dq, dk, dv
