"""attention_varlen in plain PyTorch, for tensors that no kernel takes: tiles of matrix products.

A tile is some queries of one text and all keys that they see, so that a window costs O(N * window) and a text of 8,192
tokens never makes an 8,192 x 8,192 tensor. q, k, v and out are head-major here: [heads, N, head_dim]. Products have the
tensors' dtype, softmax and its statistics at least fp32. With P = softmax(scale * q k^T), and M = P / (1 - p) where the
dropout mask keeps an element, else 0:

    out = M V;  dV = M^T dO;  dS = M * (dO V^T) - P * rowsum(dO * out);  dQ = scale dS K;  dK = scale dS^T Q

(rowsum(dO * out) replaces rowsum(M * dP): https://arxiv.org/abs/2205.14135, appendix B.)

With relative positions, a tile's queries are multiplied by the vectors of all its distances, in order. Row by row, the
products are shifted by one against the next, so that a view of them lies on the scores: https://arxiv.org/abs/1901.02860.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from glimodern import reference
from glimodern.reference import RelativePositions

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


def _shifted(products: Tensor, columns: int) -> Tensor:
    """View products [heads, rows, rows + columns - 1] by its element rows - 1 - r + c: [heads, rows, columns]."""
    heads, rows, width = products.shape
    return products.as_strided(
        (heads, rows, columns), (rows * width, width - 1, 1), products.storage_offset() + rows - 1
    )


def _by_distance(x: Tensor) -> Tensor:
    """Return products of which x [heads, rows, columns] is the `_shifted` view, 0 elsewhere."""
    heads, rows, columns = x.shape
    products = x.new_zeros(heads, rows, rows + columns - 1)
    _shifted(products, columns).copy_(x)
    return products


class _TilePositions:
    """The terms of one tile. c2p: vectors by distance, from the last query's to the first key on, [heads, n, head_dim];
    p2c: in the reverse order; bias: as c2p, [heads, n]. rows: the table rows of c2p's distances."""

    def __init__(self, positions: RelativePositions, tile: Tile) -> None:
        device = positions.rows.device
        last, first = tile.q1 - 1 - tile.k0, tile.q0 - (tile.k1 - 1)
        self.rows = positions.of_distances(torch.arange(last, first - 1, -1, device=device))
        self.queries, self.keys = tile.q1 - tile.q0, tile.k1 - tile.k0
        c2p, p2c, bias = positions.c2p, positions.p2c, positions.bias
        self.c2p = None if c2p is None else c2p[self.rows].transpose(0, 1)
        self.p2c = None if p2c is None else p2c[self.rows.flip(0)].transpose(0, 1)
        self.bias = None if bias is None else bias[self.rows].t()

    def products(self, q: Tensor, k: Tensor) -> list[Tensor]:
        """The terms that are scaled, [heads, queries, keys] each; q, k: of the tile, [heads, .., head_dim]."""
        terms = []
        if self.c2p is not None:
            terms.append(_shifted(torch.matmul(q, self.c2p.transpose(1, 2)), self.keys))
        if self.p2c is not None:
            terms.append(_shifted(torch.matmul(k, self.p2c.transpose(1, 2)), self.queries).transpose(1, 2))
        return terms

    def bias_term(self) -> Tensor:
        """The term that is not scaled, [heads, queries, keys]."""
        bias = cast(Tensor, self.bias)
        return bias.unfold(1, self.keys, 1).flip(1)

    def gradients(self, ds: Tensor, own: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of rows `own` and of their vectors, from ds [heads, rows, columns], those of their products."""
        products = _by_distance(ds)
        return products @ vectors, products.transpose(1, 2) @ own


def _scores(q: Tensor, k: Tensor, tile: Tile, options: Options, positions: _TilePositions | None) -> Tensor:
    """The scores of a tile [heads, queries, keys], at least fp32; -inf where a key is outside the window."""
    q, k = q[:, tile.q0 : tile.q1], k[:, tile.k0 : tile.k1]
    scores = torch.matmul(q, k.transpose(1, 2)).to(accumulator_dtype(q))
    if positions is not None:
        for term in positions.products(q, k):
            scores += term
    scores *= options.scale
    if positions is not None and positions.bias is not None:
        scores += positions.bias_term()
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


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Sequence[int],
    options: Options,
    positions: RelativePositions | None,
) -> tuple[Tensor, Tensor]:
    """(out [heads, N, head_dim], logsumexp [heads, N] at least fp32)."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=accumulator_dtype(q))
    for tile in tiles(offsets, options.window):
        scores = _scores(q, k, tile, options, _of_tile(positions, tile))
        lse[:, tile.q0 : tile.q1] = torch.logsumexp(scores, -1)
        m = _dropped(torch.softmax(scores, -1), tile, options).to(q.dtype)
        out[:, tile.q0 : tile.q1] = m @ v[:, tile.k0 : tile.k1]
    return out, lse


def _of_tile(positions: RelativePositions | None, tile: Tile) -> _TilePositions | None:
    return None if positions is None or tile.q0 == tile.q1 else _TilePositions(positions, tile)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Sequence[int],
    options: Options,
    positions: RelativePositions | None,
) -> tuple[Tensor, ...]:
    """dq, dk, dv [heads, N, head_dim], then the gradients of positions.c2p, p2c and bias, empty where there is none.

    Computes P again from the logsumexp.
    """
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)  # a key may be in several tiles
    tables = (None,) * 3 if positions is None else positions[1:]
    dc2p, dp2c, dbias = (q.new_zeros(0 if x is None else x.shape, dtype=lse.dtype) for x in tables)
    delta = (grad * out).sum(-1, keepdim=True, dtype=lse.dtype)
    for tile in tiles(offsets, options.window):
        queries, keys = slice(tile.q0, tile.q1), slice(tile.k0, tile.k1)
        terms = _of_tile(positions, tile)
        p = (_scores(q, k, tile, options, terms) - lse[:, queries, None]).exp_()
        m = _dropped(p, tile, options)
        ds = torch.matmul(grad[:, queries], v[:, keys].transpose(1, 2)).to(lse.dtype)
        if options.dropout_p > 0.0:
            ds = torch.where(m != 0.0, ds / (1.0 - options.dropout_p), 0.0)
        ds = ds.sub_(delta[:, queries]).mul_(p)
        if terms is not None and terms.bias is not None:
            _add_rows(dbias, terms.rows, _by_distance(ds).sum(1).t())
        ds = (ds * options.scale).to(q.dtype)
        dq[:, queries] = ds @ k[:, keys]
        dk[:, keys] += ds.transpose(1, 2) @ q[:, queries]
        dv[:, keys] += m.to(q.dtype).transpose(1, 2) @ grad[:, queries]
        if terms is not None and terms.c2p is not None:
            own, vectors = terms.gradients(ds, q[:, queries], terms.c2p)
            dq[:, queries] += own
            _add_rows(dc2p, terms.rows, vectors.transpose(0, 1))
        if terms is not None and terms.p2c is not None:
            own, vectors = terms.gradients(ds.transpose(1, 2), k[:, keys], terms.p2c)
            dk[:, keys] += own
            _add_rows(dp2c, terms.rows.flip(0), vectors.transpose(0, 1))
    return dq, dk, dv, dc2p, dp2c, dbias


def _add_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows[n]] += values[n]; in a fixed order, on CUDA too."""
    table.index_put_((rows,), values.to(table.dtype), accumulate=True)
