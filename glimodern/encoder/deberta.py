"""A packed forward pass for DeBERTa-v2 and v3, through transformers' modules.

A layer is BERT's, with disentangled attention: content-to-position (c2p) and position-to-content (p2c) terms are added
to the scores (https://arxiv.org/abs/2006.03654):

    score(i, j) = (q_i . k_j + q_i . pk(i - j) + k_j . pq(i - j)) / sqrt(3 head_dim)

pk and pq are projections of a table of relative distances. Large distances share buckets on a logarithmic scale.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import ops
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.layers.packed_linear import all_packed
from glimodern.layers.relative_attention import Groups
from glimodern.runtime.ambient import lasting

from .layer_chain import Layer, as_published, embeddings, post_norm_chain, run_chain
from .relative_rows import deberta_rows

DEBERTA_MODELS = ("deberta-v2",)  # transformers' model_type for v2 and v3


def deberta_forward(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    packing: Packing,
    rows: Tensor | None,
    chained: Chained | None = None,
) -> Tensor:
    """Encode packed tokens: input_ids, position_ids int64 [N], rows int64 [r] or None -> [r or N, hidden_size].

    chained: the cache of the model's operator chain, if it may run as one.
    """
    x = embeddings(model, input_ids, position_ids)
    done = run_chain(chained, model, x, packing, rows)
    if done is not None:
        return done
    embedded = x
    layers = model.encoder.layer
    table = model.encoder.get_rel_embedding()
    distances = None if table is None or not len(layers) else _Distances.of(layers[0].attention.self, packing)
    for number, layer in enumerate(layers):
        context = _attention(layer.attention.self, x, packing, table, distances)
        convolved = number == 0 and model.encoder.conv is not None
        if rows is not None and number + 1 == len(layers) and not convolved:
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(x), x)
        if convolved:
            x = _convolution(model.encoder.conv, embedded, x, packing.groups)
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
    """Table rows of the distances that occur in a batch.

    low, high: bounds of the table rows in use. rows: int32 [2 reach + 1], rows of distances, counted from low.
    """

    low: int
    high: int
    rows: Tensor

    @classmethod
    def of(cls, module: Any, packing: Packing) -> _Distances:
        """Compute the rows by the options of an attention module; all rows if the texts' lengths are not known."""
        rows = _rows(module)
        if packing.offsets is None:
            return cls(0, 2 * module.pos_ebd_size, rows.to(packing.cu_seqlens.device))
        reach = len(rows) // 2
        # Kernels add the terms in another order where all distances share a row, so at least two rows are kept.
        near = min(reach, max(max(packing.lengths, default=0) - 1, 1))
        rows = rows[reach - near : reach + near + 1]
        low, high = (int(x) for x in torch.aminmax(rows))
        return cls(low, high + 1, (rows - low).to(packing.cu_seqlens.device))


def _rows(module: Any) -> Tensor:
    return deberta_rows(module.position_buckets, module.max_relative_positions, module.pos_ebd_size)


def _terms(module: Any) -> list[str]:
    return [term for term in ("c2p", "p2c") if term in module.pos_att_type]


def _scale(module: Any) -> float:
    return 1.0 / math.sqrt(module.attention_head_size * (1 + len(_terms(module))))


def _projections(module: Any) -> dict[str, Any]:
    """The linear layers that make a term's vectors of the table: term -> module."""
    names = {"c2p": "key_proj", "p2c": "query_proj"}
    shared = "" if module.share_att_key else "pos_"
    return {term: getattr(module, shared + names[term]) for term in _terms(module)}


def _positions(module: Any, table: Tensor, rows: Tensor) -> ops.RelativePositions:
    """Project table rows [.., hidden_size], which `rows` counts in."""
    shape = (-1, module.num_attention_heads, module.attention_head_size)
    return ops.RelativePositions(rows, **{term: f(table).view(shape) for term, f in _projections(module).items()})


def _attention(module: Any, x: Tensor, packing: Packing, table: Tensor | None, distances: _Distances | None) -> Tensor:
    heads, dim = module.num_attention_heads, module.attention_head_size
    q, k, v = (linear(x).view(-1, heads, dim) for linear in (module.query_proj, module.key_proj, module.value_proj))
    dropout_p = module.dropout.p if module.training else 0.0
    positions = None
    if table is not None and distances is not None and _terms(module):
        low, high, rows = distances
        positions = _positions(module, module.pos_dropout(table)[low:high], rows)
    scale = _scale(module)
    return packed_attention(q, k, v, packing, scale=scale, dropout_p=dropout_p, positions=positions).flatten(1)


def deberta_chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers as one chain of operators; None if they cannot be one.

    The tables of all distances are projected once, by the layers' own modules.
    """
    encoder = model.encoder
    if encoder.conv is not None or not as_published(encoder):
        return None
    layers = []
    with lasting():
        table = encoder.get_rel_embedding()
        for layer in encoder.layer:
            own, positions = layer.attention.self, None
            if table is not None and _terms(own):
                if not all_packed(_projections(own).values()):
                    return None
                positions = _positions(own, table.to(dtype), _rows(own))
            layers.append(_layer(layer, positions))
    return post_norm_chain(dtype, layers)


def _layer(layer: Any, positions: ops.RelativePositions | None) -> Layer:
    own, output, up, last = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    heads = own.num_attention_heads
    return Layer(
        own.query_proj, own.key_proj, own.value_proj, output.dense, heads, heads, _scale(own), output.LayerNorm,
        up.dense, up.intermediate_act_fn, last.dense, last.LayerNorm, positions,
    )  # fmt: skip
