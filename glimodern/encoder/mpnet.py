"""A packed forward pass for MPNet, through transformers' modules.

A layer is BERT's, with a relative position bias on the scores, shared by all layers: https://arxiv.org/abs/2004.09297.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimodern import ops
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.runtime.ambient import lasting

from .layer_chain import Layer, as_published, embeddings, post_norm_chain, run_chain
from .relative_rows import t5_rows

_BUCKETS, _MAX_DISTANCE = 32, 128  # of every MPNet: transformers does not read them from the config


def mpnet_forward(
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
    positions = _positions(model, x.device)
    layers = model.encoder.layer
    for number, layer in enumerate(layers):
        attention, module = layer.attention, layer.attention.attn
        heads, dim = module.num_attention_heads, module.attention_head_size
        q, k, v = (linear(x).view(-1, heads, dim) for linear in (module.q, module.k, module.v))
        dropout_p = module.dropout.p if module.training else 0.0
        context = packed_attention(q, k, v, packing, dropout_p=dropout_p, positions=positions).flatten(1)
        if rows is not None and number + 1 == len(layers):
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = attention.LayerNorm(attention.dropout(module.o(context)) + x)
        x = layer.output(layer.intermediate(x), x)
    return x if rows is None or len(layers) else x.index_select(0, rows)


def _positions(model: Any, device: torch.device) -> ops.RelativePositions:
    table = model.encoder.relative_attention_bias(torch.arange(_BUCKETS, device=device))
    return ops.RelativePositions(t5_rows(_BUCKETS, _MAX_DISTANCE).to(device), bias=table.float())


def mpnet_chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers as one chain of operators; None if they cannot be one."""
    if not as_published(model.encoder):
        return None
    with lasting():
        positions = _positions(model, torch.device("cpu"))
    return post_norm_chain(dtype, [_layer(layer, positions) for layer in model.encoder.layer])


def _layer(layer: Any, positions: ops.RelativePositions) -> Layer:
    own, norm, up, last = layer.attention.attn, layer.attention.LayerNorm, layer.intermediate, layer.output
    heads = own.num_attention_heads
    return Layer(
        own.q, own.k, own.v, own.o, heads, heads, None, norm, up.dense, up.intermediate_act_fn, last.dense,
        last.LayerNorm, positions,
    )  # fmt: skip
