"""Attention with relative positions by PyTorch's attention, on groups of texts of similar length, and the groups.

For devices without a kernel of `ops.attention_varlen` that takes positions, and for tracers. The linear layers stay
packed, and attention is computed for groups of texts, padded to the longest text of the group. On a CPU, every text of
a group has at least 0.9 of the longest text's length, and a group of consecutive texts of equal length needs no copy.
On a GPU, where launches cost more than padding, at least 0.5.

A text of L tokens is multiplied by the vectors of its own 2L distances, in order. Its scores are then a view of the
product, in which each row is shifted by one against the next, and nothing is gathered. The view is Transformer-XL's
"relative shift", https://arxiv.org/abs/1901.02860.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from glimodern.ops import RelativePositions

if TYPE_CHECKING:
    from .attention import Packing

_MIN_FILL_CPU, _MIN_FILL_GPU = 0.9, 0.5  # minimum of a text's length divided by the longest length of its group
_MAX_TOKENS_CPU = 512  # of a group, so that its scores stay in the caches


@dataclass(frozen=True, eq=False)
class Group:
    """Texts padded to one length.

    rows: the packed rows of their tokens, as a slice or int64 [texts * length]. padded: bool [1, texts, 1, length],
    True where there is no token; None: no padding.
    """

    texts: int
    length: int
    rows: slice | Tensor
    padded: Tensor | None


@dataclass(frozen=True, eq=False)
class Groups:
    """All texts of a batch in groups.

    order: int64 [N], each token's row in the concatenated rows of all groups; None: the order is unchanged.
    """

    groups: tuple[Group, ...]
    order: Tensor | None


def group_texts(packing: Packing, padding: bool = True) -> Groups:
    """Group the texts of a batch by length, longest first; texts without tokens are left out.

    padding: if False, all texts of a group have the same length.
    """
    device, host = packing.cu_seqlens.device, torch.device("cpu")
    on_cpu = device.type == "cpu"
    min_fill = (_MIN_FILL_CPU if on_cpu else _MIN_FILL_GPU) if padding else 1.0
    lengths = packing.lengths
    offsets = list(accumulate(lengths, initial=0))
    members: list[list[int]] = []  # text indices of each group
    for text in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        longest = lengths[members[-1][0]] if members else 0
        full = on_cpu and members and (len(members[-1]) + 1) * longest > _MAX_TOKENS_CPU
        if not members or full or lengths[text] < min_fill * longest:
            members.append([])
        members[-1].append(text)
    groups, order, first_row = [], torch.empty(packing.tokens, dtype=torch.int64, device=host), 0
    in_order = True
    for texts in members:
        length = lengths[texts[0]]
        starts = torch.tensor([offsets[i] for i in texts], device=host)
        sizes = torch.tensor([lengths[i] for i in texts], device=host)
        step = torch.arange(length, device=host)
        rows = starts[:, None] + step.clamp(max=sizes[:, None] - 1)  # padding repeats a text's last token
        padded = step >= sizes[:, None]
        tokens = ~padded
        order[rows[tokens]] = (first_row + torch.arange(rows.numel(), device=host).view_as(rows))[tokens]
        start, unpadded = int(starts[0]), not bool(padded.any())
        consecutive = unpadded and texts == list(range(texts[0], texts[0] + len(texts)))
        in_order = in_order and consecutive and start == first_row
        selection = slice(start, start + rows.numel()) if consecutive else rows.flatten().to(device)
        groups.append(Group(len(texts), length, selection, None if unpadded else padded[None, :, None].to(device)))
        first_row += rows.numel()
    return Groups(tuple(groups), None if in_order else order.to(device))


def _shift(product: Tensor, length: int) -> Tensor:
    """View product [..., L, 2L] as [..., L, L], whose element (i, j) is product's element (i, L - i + j)."""
    return product.flatten(-2)[..., length:].unflatten(-1, (length, 2 * length - 1))[..., :length]


def _bias(positions: RelativePositions, scale: float, q: Tensor, k: Tensor, length: int) -> Tensor:
    """Return what to add to scale * q k^T, broadcastable to [heads, texts, length, length], in q's dtype.

    q, k: [heads, texts, length, head_dim].
    """
    distances = torch.arange(-length, length, device=positions.rows.device)
    ascending, descending = (positions.of_distances(x) for x in (distances, -distances))
    terms = []
    for content, vectors, rows in ((q, positions.c2p, descending), (k, positions.p2c, ascending)):
        if vectors is not None:
            by_distance = (vectors.to(q.dtype) * scale).index_select(0, rows).permute(1, 2, 0)
            product = torch.bmm(content.flatten(1, 2), by_distance).unflatten(1, (-1, length))
            shifted = _shift(product, length)
            terms.append(shifted if rows is descending else shifted.transpose(-1, -2))
    if positions.bias is not None:
        by_distance = positions.bias.index_select(0, descending).t()[:, None, None]
        terms.append(_shift(by_distance.expand(-1, -1, length, -1), length).to(q.dtype))
    return sum(terms[1:], terms[0])


def grouped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Groups,
    positions: RelativePositions,
    *,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute `ops.attention_varlen` with positions inside each text: q, k, v [N, heads, head_dim] -> the same shape.

    dropout_p: probability of dropping an attention probability, by torch's generator; pass 0 outside training.
    """
    outs = []
    for group in groups.groups:
        shape = (q.shape[1], group.texts, group.length, q.shape[2])
        rows = group.rows
        selected = (x[rows] if isinstance(rows, slice) else x.index_select(0, rows) for x in (q, k, v))
        # Heads first, so that a head multiplies the tokens of all texts by its position vectors in one product.
        q_group, k_group, v_group = (x.transpose(0, 1).reshape(shape) for x in selected)
        added = _bias(positions, scale, q_group, k_group, group.length)
        if group.padded is not None:
            added = added.masked_fill(group.padded, -torch.inf)
        out = F.scaled_dot_product_attention(q_group, k_group, v_group, added, dropout_p, scale=scale)
        outs.append(out.flatten(1, 2).transpose(0, 1))
    if not outs:
        return torch.zeros_like(q)
    out = torch.cat(outs)
    return out if groups.order is None else out.index_select(0, groups.order)
