"""The oracle of attention_varlen."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .dropout import keep_mask


def attention_keep(heads: int, queries: Tensor, keys: Tensor, dropout_p: float, seed: int) -> Tensor:
    """Counter-based dropout mask of attention's probabilities, the same in every backend.

    queries: int64 [q], counted in the whole batch. keys: int64 [k], counted in their text.

    Returns bool [heads, q, k], True where kept: row query * heads + head and column key of `dropout_keep`.
    """
    rows = queries[None, :] * heads + torch.arange(heads, device=queries.device)[:, None]
    return keep_mask(rows, keys, dropout_p, seed)


class RelativePositions(NamedTuple):
    """Terms of attention scores that depend on the relative distance d = i - j of query i and key j.

    rows: int [2 reach + 1], the table row of each distance from -reach to reach; farther ones count as -reach or reach.
    c2p, p2c: [table rows, heads, head_dim], the vectors that queries and keys are multiplied by. bias: [table rows,
    heads]. None: no such term.
    """

    rows: Tensor
    c2p: Tensor | None = None
    p2c: Tensor | None = None
    bias: Tensor | None = None

    def of_distances(self, distances: Tensor) -> Tensor:
        """Return the table rows of distances, int64, in the same shape."""
        reach = len(self.rows) // 2
        return self.rows.long()[distances.clamp(-reach, reach) + reach]


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    positions: RelativePositions | None = None,
) -> Tensor:
    """out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j over j in the text of i with |i - j| <= window (None: all).

    q, k, v: [N, heads, head_dim]. cu_seqlens: int [texts + 1]. scale: None means 1 / sqrt(head_dim). positions: the
    scores are scale * (q_i . k_j + q_i . c2p[row] + k_j . p2c[row]) + bias[row] with the row of i - j.
    Returns [N, heads, head_dim].
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    offsets = cu_seqlens.tolist()
    outs = []
    for start, end in zip(offsets, offsets[1:], strict=False):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end])
        position = torch.arange(end - start, device=q.device)
        rows = None if positions is None else positions.of_distances(position[:, None] - position[None, :])
        if positions is not None and positions.c2p is not None:
            scores = scores + torch.einsum("ihd,ijhd->hij", q[start:end], positions.c2p[rows])
        if positions is not None and positions.p2c is not None:
            scores = scores + torch.einsum("jhd,ijhd->hij", k[start:end], positions.p2c[rows])
        scores = scores * scale
        if positions is not None and positions.bias is not None:
            scores = scores + positions.bias[rows].permute(2, 0, 1)
        if window is not None:
            unseen = (position[:, None] - position[None, :]).abs() > window
            scores = scores.masked_fill(unseen, -math.inf)
        p = torch.softmax(scores, -1)
        if dropout_p > 0.0:
            keep = attention_keep(q.shape[1], start + position, position, dropout_p, seed)
            p = torch.where(keep, p / (1.0 - dropout_p), torch.zeros((), dtype=p.dtype, device=p.device))
        outs.append(torch.einsum("hij,jhd->ihd", p, v[start:end]))
    return torch.cat(outs) if outs else q.new_zeros(q.shape)
