"""A packed forward pass for the encoders of T5, mT5 and UMT5, through transformers' modules.

    x = embed(ids)
    x = x + Wo attention(Wq n, Wk n, Wv n),   n = norm(x)      scores without a scale, plus a relative position bias
    x = x + W2 act(W1 norm(x)),               or W2 (act(W10 n) * W11 n) with a gated activation
    hidden = norm(x)

All layers use the first layer's bias, but each layer of UMT5 has its own: https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.ops import Chain, RelativePositions
from glimodern.runtime.ambient import lasting

from .layer_chain import Layer, as_published, gate_of, pre_norm_chain, run_chain
from .relative_rows import t5_rows

T5_MODELS = ("t5", "mt5", "umt5")
_CHAINED = ("encoder.block", "encoder.final_layer_norm")  # what the chain replaces


def t5_forward(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    packing: Packing,
    rows: Tensor | None,
    chained: Chained | None = None,
) -> Tensor:
    """Encode packed tokens: input_ids int64 [N], rows int64 [r] or None for all -> hidden [r or N, hidden_size].

    position_ids: not used. chained: the cache of the model's operator chain, if it may run as one.
    """
    stack = model.encoder
    x: Tensor = stack.dropout(stack.embed_tokens(input_ids))
    done = run_chain(chained, model, x, packing, rows, _CHAINED)
    if done is not None:
        return done
    positions = None
    for number, block in enumerate(stack.block):
        first = block.layer[0]
        attention = first.SelfAttention
        if attention.has_relative_attention_bias:
            positions = _positions(attention, x.device)
        context = _attention(attention, first.layer_norm(x), packing, positions)
        if rows is not None and number + 1 == len(stack.block):
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = _clamp_fp16(x + first.dropout(attention.o(context)))
        x = _clamp_fp16(_feed_forward(block.layer[-1], x))
    x = stack.dropout(stack.final_layer_norm(x))
    return x if rows is None or len(stack.block) else x.index_select(0, rows)


def _positions(module: Any, device: torch.device) -> RelativePositions:
    buckets = module.relative_attention_num_buckets
    rows = t5_rows(buckets, module.relative_attention_max_distance)
    table = module.relative_attention_bias(torch.arange(buckets, device=device))
    return RelativePositions(rows.to(device), bias=table)


def _attention(module: Any, x: Tensor, packing: Packing, positions: RelativePositions | None) -> Tensor:
    q, k, v = (linear(x).unflatten(-1, (module.n_heads, -1)) for linear in (module.q, module.k, module.v))
    dropout_p = module.dropout if module.training else 0.0
    return packed_attention(q, k, v, packing, scale=1.0, dropout_p=dropout_p, positions=positions).flatten(1)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    normed, mlp = layer.layer_norm(x), layer.DenseReluDense
    if hasattr(mlp, "wi_0"):
        inner = mlp.act(mlp.wi_0(normed)) * mlp.wi_1(normed)
    else:
        inner = mlp.act(mlp.wi(normed))
    out: Tensor = x + layer.dropout(mlp.wo(mlp.dropout(inner)))
    return out


def _clamp_fp16(x: Tensor) -> Tensor:
    """Clamp fp16 values to the finite range, as transformers does: T5's activations overflow fp16."""
    if x.dtype != torch.float16:
        return x
    limit = torch.finfo(x.dtype).max - 1000
    return x.clamp(-limit, limit)


def t5_chain(model: Any, dtype: torch.dtype) -> Chain | None:
    """Build the layers and the final norm as one chain of operators; None if they cannot be one."""
    stack = model.encoder
    if not as_published(stack.block, stack.final_layer_norm):
        return None
    layers, positions = [], None
    for block in stack.block:
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            with lasting():
                positions = _positions(attention, torch.device("cpu"))
                positions = positions._replace(bias=cast(Tensor, positions.bias).float())
        layers.append(_layer(block, positions))
    return pre_norm_chain(dtype, layers, stack.final_layer_norm)


def _layer(block: Any, positions: RelativePositions | None) -> Layer:
    first, last = block.layer[0], block.layer[-1]
    attention, mlp = first.SelfAttention, last.DenseReluDense
    up = gate_of(mlp.wi_0, mlp.wi_1) if hasattr(mlp, "wi_0") else mlp.wi
    return Layer(
        attention.q, attention.k, attention.v, attention.o, attention.n_heads, attention.n_heads, 1.0,
        first.layer_norm, up, mlp.act, mlp.wo, last.layer_norm, positions,
    )  # fmt: skip
