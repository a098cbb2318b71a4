"""DeBERTa-v2 and v3 on packed texts: our own pass through transformers' modules.

A layer is BERT's, but its attention adds to the scores how the query's content meets the key's distance, and the key's
content the query's (https://arxiv.org/abs/2006.03654):

    score(i, j) = (q_i . k_j + q_i . pk(i - j) + k_j . pq(i - j)) / sqrt(3 head_dim)

pk and pq are projections of a table of distances, which far from 0 are put into buckets on a logarithmic scale.
transformers multiplies every token with the whole table (512 rows) and gathers what it needs; here a text of L tokens
meets the 2L distances that it has, in order, so that the scores are a view of the product, one row moved against the
next: nothing is gathered. (The view is Transformer-XL's "relative shift", https://arxiv.org/abs/1901.02860.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.relative_attention import Groups, group_texts, grouped_attention

DEBERTA_MODELS = ("deberta-v2",)  # v3 is a v2 in transformers


def deberta_forward(
    model: Any, input_ids: Tensor, position_ids: Tensor, packing: Packing, rows: Tensor | None
) -> Tensor:
    """input_ids and position_ids int64 [N], rows int64 [r] or None (all) -> hidden [r or N, hidden_size]."""
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    embedded = x
    table = model.encoder.get_rel_embedding()
    groups = group_texts(packing)
    layers = model.encoder.layer
    distances = None
    if table is not None and len(layers):
        distances = _Distances.of(layers[0].attention.self, groups.groups[0].length, x.device)
    for number, layer in enumerate(layers):
        mixed = _attention(layer.attention.self, x, packing, groups, table, distances)
        convolved = number == 0 and model.encoder.conv is not None
        if rows is not None and number + 1 == len(layers) and not convolved:
            mixed, x = mixed.index_select(0, rows), x.index_select(0, rows)
        x = layer.attention.output(mixed, x)
        x = layer.output(layer.intermediate(x), x)
        if convolved:
            x = _convolution(model.encoder.conv, embedded, x, packing)
            if rows is not None and len(layers) == 1:
                x = x.index_select(0, rows)
    return x if rows is None or len(layers) else x.index_select(0, rows)


def _convolution(conv: Any, embedded: Tensor, x: Tensor, packing: Packing) -> Tensor:
    """The first layer's convolution over neighbouring tokens, which must not cross from text to text."""
    texts = zip(embedded.split(packing.lengths), x.split(packing.lengths), strict=True)
    return torch.cat([conv(e[None], y[None], e.new_ones(1, len(e)))[0] for e, y in texts if len(e)])


class _Distances(NamedTuple):
    """The distances -longest ... longest of the longest text: low and high bound the rows of the table that they take,
    rows int64 [2 longest + 1] says which of these."""

    longest: int
    low: int
    high: int
    rows: Tensor

    @classmethod
    def of(cls, module: Any, longest: int, device: torch.device) -> _Distances:
        """By the options of an attention module."""
        distance = torch.arange(-longest, longest + 1, device="cpu")
        buckets, most, span = module.position_buckets, module.max_relative_positions, module.pos_ebd_size
        if buckets > 0 and most > 0:
            middle = buckets // 2
            far = distance.abs().clamp(min=middle).float()
            # fp32, step by step as the models were trained: another rounding would move a bucket's bounds
            log = torch.log(far / middle) / torch.log(far.new_tensor((most - 1) / middle)) * (middle - 1)
            bucket = (torch.ceil(log) + middle).long() * distance.sign()
            distance = torch.where(distance.abs() <= middle, distance, bucket)
        rows = (distance + span).clamp(0, 2 * span - 1)  # they rise with the distance
        low, high = int(rows[0]), int(rows[-1]) + 1
        return cls(longest, low, high, (rows - low).to(device))


def _shift(product: Tensor) -> Tensor:
    """[..., L, 2L] of rows i and columns m -> [..., L, L], a view: at (i, j) column L - i + j."""
    length = product.shape[-2]
    return product.flatten(-2)[..., length:].unflatten(-1, (length, 2 * length - 1))[..., :length]


def _attention(
    module: Any, x: Tensor, packing: Packing, groups: Groups, table: Tensor | None, distances: _Distances | None
) -> Tensor:
    heads, dim = module.num_attention_heads, module.attention_head_size
    q, k, v = (linear(x).view(-1, heads, dim) for linear in (module.query_proj, module.key_proj, module.value_proj))
    kinds = [kind for kind in ("c2p", "p2c") if kind in module.pos_att_type]
    scale = 1.0 / math.sqrt(dim * (1 + len(kinds)))
    dropout_p = module.dropout.p if module.training else 0.0
    if table is None or distances is None or not kinds:
        return packed_attention(q, k, v, packing, scale=scale, dropout_p=dropout_p).reshape(len(x), -1)
    near = module.pos_dropout(table)[distances.low : distances.high]
    vectors: dict[str, Tensor] = {}  # [heads, head_dim, 2 longest + 1], scaled
    for kind in kinds:
        content = kind == "c2p"  # distances from longest down to -longest; for "p2c" from -longest up
        if module.share_att_key:
            linear = module.key_proj if content else module.query_proj
        else:
            linear = module.pos_key_proj if content else module.pos_query_proj
        spread = (linear(near) * scale).index_select(0, distances.rows.flip(0) if content else distances.rows)
        vectors[kind] = spread.view(-1, heads, dim).permute(1, 2, 0)

    def bias(q_of: Tensor, k_of: Tensor, length: int) -> Tensor:
        parts = []
        for kind, of in (("c2p", q_of), ("p2c", k_of)):
            if kind in vectors:
                around = vectors[kind][..., distances.longest - length : distances.longest + length]
                shifted = _shift(torch.bmm(of.flatten(1, 2), around).unflatten(1, of.shape[1:3]))
                parts.append(shifted if kind == "c2p" else shifted.transpose(-1, -2))
        return parts[0] + parts[1] if len(parts) == 2 else parts[0]

    return grouped_attention(q, k, v, groups, bias, scale=scale, dropout_p=dropout_p).reshape(len(x), -1)
