"""EuroBERT's layers as one chain of operators: pre-norm by RMS, rotary positions, grouped queries, a gate.

    x = x + Wo attention(rotary(Wq n), rotary(Wk n), Wv n),   n = norm(x); several queries share a key and a value
    x = x + Wd (act(Wg n) * Wu n),                            n = norm(x)
    hidden = norm(x)

Model: https://arxiv.org/abs/2503.05500.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimodern import ops

from .layer_chain import ChainedFamily, Layer, as_published, gate_of, pre_norm_chain


def _chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    layers = model.layers[: model.config.num_hidden_layers]
    if not as_published(model.layers, model.norm):
        return None
    return pre_norm_chain(dtype, [_layer(layer) for layer in layers], model.norm, rotary=True)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    heads, key_heads = (x.out_features // attention.head_dim for x in (attention.q_proj, attention.k_proj))
    return Layer(
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, heads, key_heads, attention.scaling,
        layer.input_layernorm, gate_of(mlp.gate_proj, mlp.up_proj), mlp.act_fn, mlp.down_proj,
        layer.post_attention_layernorm,
    )  # fmt: skip


def _embed(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    x: Tensor = model.embed_tokens(input_ids)
    return x


EUROBERT = ChainedFamily(_chain, ("layers", "norm"), _embed, rotary=True)
