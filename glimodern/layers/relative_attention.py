"""Texts of like length side by side, and attention with a bias over relative positions on them.

`ops.attention_varlen` knows no bias. So here the linear layers stay packed, and attention alone is computed for groups
of texts, each as long as the group's longest: on a CPU within a tenth of it, and without any copy where the texts of a
group are of one length; on a GPU, where launches cost more than padding, within half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Packing

_LEAST_FILL_CPU, _LEAST_FILL = 0.9, 0.5  # a text's length by its group's longest, at least
_MOST_TOKENS_CPU = 512  # of a group: its scores stay in the caches

Bias = Callable[[Tensor, Tensor, int], Tensor]
"""Of q and k [heads, texts, length, head_dim] and the length: what is added to scale * q k^T, broadcast to
[heads, texts, length, length]."""


@dataclass(frozen=True, eq=False)
class Group:
    """Texts side by side: rows, where their tokens lie in the packed batch (a slice, or int64 [texts * length]), and
    unseen, bool [1, texts, 1, length], the places without a token (None: there are none)."""

    texts: int
    length: int
    rows: slice | Tensor
    unseen: Tensor | None


@dataclass(frozen=True, eq=False)
class Groups:
    """All texts in groups; order int64 [N]: a token's place in the groups' rows one after the other (None: its own)."""

    groups: tuple[Group, ...]
    order: Tensor | None


def group_texts(packing: Packing, padding: bool = True) -> Groups:
    """The texts with tokens, longest first, cut where a text is much shorter than the first of its group, or (padding
    False) shorter at all."""
    device, host = packing.cu_seqlens.device, torch.device("cpu")
    on_cpu = device.type == "cpu"
    least_fill = (_LEAST_FILL_CPU if on_cpu else _LEAST_FILL) if padding else 1.0
    lengths = packing.lengths
    offsets = list(accumulate(lengths, initial=0))
    cut: list[list[int]] = []
    for text in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        longest = lengths[cut[-1][0]] if cut else 0
        full = on_cpu and cut and (len(cut[-1]) + 1) * longest > _MOST_TOKENS_CPU
        if not cut or full or lengths[text] < least_fill * longest:
            cut.append([])
        cut[-1].append(text)
    groups, places, place = [], torch.empty(packing.tokens, dtype=torch.int64, device=host), 0
    in_order = True
    for texts in cut:
        length = lengths[texts[0]]
        starts = torch.tensor([offsets[i] for i in texts], device=host)
        sizes = torch.tensor([lengths[i] for i in texts], device=host)
        step = torch.arange(length, device=host)
        rows = starts[:, None] + step.clamp(max=sizes[:, None] - 1)  # padding repeats a text's last token
        unseen = step >= sizes[:, None]
        seen = ~unseen
        places[rows[seen]] = (place + torch.arange(rows.numel(), device=host).view_as(rows))[seen]
        first, whole = int(starts[0]), not bool(unseen.any())
        consecutive = whole and texts == list(range(texts[0], texts[0] + len(texts)))
        in_order = in_order and consecutive and first == place
        where = slice(first, first + rows.numel()) if consecutive else rows.flatten().to(device)
        groups.append(Group(len(texts), length, where, None if whole else unseen[None, :, None].to(device)))
        place += rows.numel()
    return Groups(tuple(groups), None if in_order else places.to(device))


def grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, groups: Groups, bias: Bias, *, scale: float, dropout_p: float = 0.0
) -> Tensor:
    """softmax(scale * q k^T + bias) v inside each text: q, k, v [N, heads, head_dim] -> [N, heads, head_dim].

    dropout_p: share of probabilities dropped (give 0 outside training), by torch's generator.
    """
    outs = []
    for group in groups.groups:
        shape = (q.shape[1], group.texts, group.length, q.shape[2])
        rows = group.rows
        own = (x[rows] if isinstance(rows, slice) else x.index_select(0, rows) for x in (q, k, v))
        # heads first: a text's heads then share one product with the positions of all texts
        q_of, k_of, v_of = (x.transpose(0, 1).reshape(shape) for x in own)
        added = bias(q_of, k_of, group.length).to(q.dtype)
        if group.unseen is not None:
            added = added.masked_fill(group.unseen, -torch.inf)
        mixed = F.scaled_dot_product_attention(q_of, k_of, v_of, added, dropout_p, scale=scale)
        outs.append(mixed.flatten(1, 2).transpose(0, 1))
    if not outs:
        return torch.zeros_like(q)
    out = torch.cat(outs)
    return out if groups.order is None else out.index_select(0, groups.order)
