"""A packed forward pass for DeBERTa-v2 and v3, through transformers' modules.

A layer is BERT's, with disentangled attention: content-to-position (c2p) and position-to-content (p2c) terms are added
to the scores (https://arxiv.org/abs/2006.03654):

    score(i, j) = (q_i . k_j + q_i . pk(i - j) + k_j . pq(i - j)) / sqrt(3 head_dim)

pk and pq are projections of a table of relative distances. Large distances share buckets on a logarithmic scale.
transformers multiplies every token by the whole table (512 rows) and gathers the scores from the products. Here a text
of L tokens is multiplied by its own 2L distances, in order. The scores are then a view of the product, in which each
row is shifted by one against the next, and nothing is gathered. The view is Transformer-XL's "relative shift",
https://arxiv.org/abs/1901.02860.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.relative_attention import Groups, group_texts, grouped_attention

DEBERTA_MODELS = ("deberta-v2",)  # transformers' model_type for v2 and v3


def deberta_forward(
    model: Any, input_ids: Tensor, position_ids: Tensor, packing: Packing, rows: Tensor | None
) -> Tensor:
    """Encode packed tokens: input_ids, position_ids int64 [N], rows int64 [r] or None -> [r or N, hidden_size]."""
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    embedded = x
    table = model.encoder.get_rel_embedding()
    groups = group_texts(packing)
    layers = model.encoder.layer
    distances = None
    if table is not None and len(layers):
        whole = packing.groups is not None  # whose longest text is not known on the host
        distances = _Distances.of(layers[0].attention.self, groups.groups[0].length, x.device, whole)
    for number, layer in enumerate(layers):
        context = _attention(layer.attention.self, x, packing, groups, table, distances)
        convolved = number == 0 and model.encoder.conv is not None
        if rows is not None and number + 1 == len(layers) and not convolved:
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(x), x)
        if convolved:
            x = _convolution(model.encoder.conv, embedded, x, groups)
            if rows is not None and len(layers) == 1:
                x = x.index_select(0, rows)
    return x if rows is None or len(layers) else x.index_select(0, rows)


def _convolution(conv: Any, embedded: Tensor, x: Tensor, groups: Groups) -> Tensor:
    """Apply the first layer's convolution over neighbouring tokens, with zeros around each text."""
    outs = []
    for group in groups.groups:
        rows, shape = group.rows, (group.texts, group.length, x.shape[-1])
        selected = (y[rows] if isinstance(rows, slice) else y.index_select(0, rows) for y in (embedded, x))
        e, y = (part.view(shape) for part in selected)
        inside = e.new_ones(shape[:2]) if group.padded is None else (~group.padded[0, :, 0]).to(e.dtype)
        outs.append(conv(e * inside[..., None], y, inside).flatten(0, 1))
    out = torch.cat(outs)
    return out if groups.order is None else out.index_select(0, groups.order)


class _Distances(NamedTuple):
    """Table rows of the distances -longest ... longest, where longest is the length of the longest text.

    low, high: bounds of the table rows in use. rows: int64 [2 longest + 1], each distance's row, counted from low.
    """

    longest: int
    low: int
    high: int
    rows: Tensor

    @classmethod
    def of(cls, module: Any, longest: int, device: torch.device, whole: bool) -> _Distances:
        """Compute the rows from the options of an attention module. whole: use all rows, whatever the distances."""
        distance = torch.arange(-longest, longest + 1, device="cpu")
        buckets, max_distance, span = module.position_buckets, module.max_relative_positions, module.pos_ebd_size
        if buckets > 0 and max_distance > 0:
            middle = buckets // 2
            far = distance.abs().clamp(min=middle).float()
            # In fp32 and in the order of operations that trained models used: other rounding would move bucket bounds.
            log = torch.log(far / middle) / torch.log(far.new_tensor((max_distance - 1) / middle)) * (middle - 1)
            bucket = (torch.ceil(log) + middle).long() * distance.sign()
            distance = torch.where(distance.abs() <= middle, distance, bucket)
        rows = (distance + span).clamp(0, 2 * span - 1)  # ascending
        low, high = (0, 2 * span) if whole else (int(rows[0]), int(rows[-1]) + 1)
        return cls(longest, low, high, (rows - low).to(device))


def _shift(product: Tensor, length: int) -> Tensor:
    """View product [..., L, 2L] as [..., L, L], whose element (i, j) is product's element (i, L - i + j)."""
    return product.flatten(-2)[..., length:].unflatten(-1, (length, 2 * length - 1))[..., :length]


def _attention(
    module: Any, x: Tensor, packing: Packing, groups: Groups, table: Tensor | None, distances: _Distances | None
) -> Tensor:
    heads, dim = module.num_attention_heads, module.attention_head_size
    q, k, v = (linear(x).view(-1, heads, dim) for linear in (module.query_proj, module.key_proj, module.value_proj))
    terms = [term for term in ("c2p", "p2c") if term in module.pos_att_type]
    scale = 1.0 / math.sqrt(dim * (1 + len(terms)))
    dropout_p = module.dropout.p if module.training else 0.0
    if table is None or distances is None or not terms:
        return packed_attention(q, k, v, packing, scale=scale, dropout_p=dropout_p).flatten(1)
    table_rows = module.pos_dropout(table)[distances.low : distances.high]
    vectors: dict[str, Tensor] = {}  # term -> [heads, head_dim, 2 longest + 1], scaled
    for term in terms:
        c2p = term == "c2p"  # c2p: distances from longest down to -longest; p2c: from -longest up to longest
        if module.share_att_key:
            linear = module.key_proj if c2p else module.query_proj
        else:
            linear = module.pos_key_proj if c2p else module.pos_query_proj
        by_distance = (linear(table_rows) * scale).index_select(0, distances.rows.flip(0) if c2p else distances.rows)
        vectors[term] = by_distance.view(-1, heads, dim).permute(1, 2, 0)

    def bias(q_group: Tensor, k_group: Tensor, length: int) -> Tensor:
        parts = []
        for term, content in (("c2p", q_group), ("p2c", k_group)):
            if term in vectors:
                positions = vectors[term][..., distances.longest - length : distances.longest + length]
                product = torch.bmm(content.flatten(1, 2), positions).unflatten(1, (-1, length))
                shifted = _shift(product, length)
                parts.append(shifted if term == "c2p" else shifted.transpose(-1, -2))
        return parts[0] + parts[1] if len(parts) == 2 else parts[0]

    return grouped_attention(q, k, v, groups, bias, scale=scale, dropout_p=dropout_p).flatten(1)
