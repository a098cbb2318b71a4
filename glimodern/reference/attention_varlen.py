"""The oracle of attention_varlen."""

import math

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


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j over j in the text of i with |i - j| <= window (None: all).

    q, k, v: [N, heads, head_dim]. cu_seqlens: int [texts + 1]. scale: None means 1 / sqrt(head_dim).
    Returns [N, heads, head_dim].
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    offsets = cu_seqlens.tolist()
    outs = []
    for start, end in zip(offsets, offsets[1:], strict=False):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]) * scale
        position = torch.arange(end - start, device=q.device)
        if window is not None:
            unseen = (position[:, None] - position[None, :]).abs() > window
            scores = scores.masked_fill(unseen, -math.inf)
        p = torch.softmax(scores, -1)
        if dropout_p > 0.0:
            keep = attention_keep(q.shape[1], start + position, position, dropout_p, seed)
            p = torch.where(keep, p / (1.0 - dropout_p), torch.zeros((), dtype=p.dtype, device=p.device))
        outs.append(torch.einsum("hij,jhd->ihd", p, v[start:end]))
    return torch.cat(outs) if outs else q.new_zeros(q.shape)
