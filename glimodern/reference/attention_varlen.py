"""The oracle of attention over packed texts."""

import math

import torch
from torch import Tensor

from .span import _GOLDEN, _MASK32, _multiply32, dropout_threshold, mix32


def attention_keep(heads: int, queries: Tensor, keys: Tensor, dropout_p: float, seed: int) -> Tensor:
    """Counter-based mask of attention's probabilities, by the generator of `dropout_keep`: the same in every backend.

    queries int64 [q] counted in the whole batch, keys int64 [k] counted in their text -> bool [heads, q, k], True where
    kept: row query * heads + head and column key of `dropout_keep`.
    """
    rows = queries[None, :] * heads + torch.arange(heads, device=queries.device)[:, None]
    row_keys = mix32(mix32(rows & _MASK32) ^ (seed & _MASK32))
    return mix32((row_keys[..., None] + _multiply32(keys, _GOLDEN)) & _MASK32) >= dropout_threshold(dropout_p)


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
    """out_i = sum_j drop(softmax_j(scale * q_i . k_j)) v_j, j in the text of i, |i - j| <= window (None: all of it).

    q, k, v [N, heads, head_dim], cu_seqlens int [texts + 1] -> [N, heads, head_dim]; scale None: 1 / sqrt(head_dim).
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    bounds = cu_seqlens.tolist()
    outs = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]) * scale
        place = torch.arange(end - start, device=q.device)
        if window is not None:
            unseen = (place[:, None] - place[None, :]).abs() > window
            scores = scores.masked_fill(unseen, -math.inf)
        p = torch.softmax(scores, -1)
        if dropout_p > 0.0:
            keep = attention_keep(q.shape[1], start + place, place, dropout_p, seed)
            p = torch.where(keep, p / (1.0 - dropout_p), torch.zeros((), dtype=p.dtype, device=p.device))
        outs.append(torch.einsum("hij,jhd->ihd", p, v[start:end]))
    return torch.cat(outs) if outs else q.new_zeros(q.shape)
