"""A packed forward pass for MPNet, through transformers' modules.

A layer is BERT's, with a relative position bias on the scores, shared by all layers: https://arxiv.org/abs/2004.09297.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from glimodern.layers.attention import Packing
from glimodern.layers.relative_attention import group_texts, grouped_attention


def mpnet_forward(model: Any, input_ids: Tensor, position_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
    """Encode packed tokens: input_ids, position_ids int64 [N], rows int64 [r] or None -> [r or N, hidden_size]."""
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    groups = group_texts(packing)
    longest = groups.groups[0].length
    shape_only = x.new_empty(1, longest, 0)  # compute_position_bias reads its shape and device only
    bias = model.encoder.compute_position_bias(shape_only)[0][:, None].contiguous()  # [heads, 1, longest, longest]

    def bias_of_length(q_group: Tensor, k_group: Tensor, length: int) -> Tensor:
        return bias[..., :length, :length]

    layers = model.encoder.layer
    for number, layer in enumerate(layers):
        attention, module = layer.attention, layer.attention.attn
        heads, dim = module.num_attention_heads, module.attention_head_size
        q, k, v = (linear(x).view(-1, heads, dim) for linear in (module.q, module.k, module.v))
        dropout_p = module.dropout.p if module.training else 0.0
        context = grouped_attention(q, k, v, groups, bias_of_length, scale=dim**-0.5, dropout_p=dropout_p)
        context = context.flatten(1)
        if rows is not None and number + 1 == len(layers):
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = attention.LayerNorm(attention.dropout(module.o(context)) + x)
        x = layer.output(layer.intermediate(x), x)
    return x if rows is None or len(layers) else x.index_select(0, rows)
