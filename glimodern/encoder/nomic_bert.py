"""NomicBERT's layers as one chain of operators: post-norm, rotary positions, a gated feed-forward.

    x = norm(x + Wo attention(rotary(Wq x), rotary(Wk x), Wv x))
    x = norm(x + Wd (act(Wg x) * Wu x))

Model: https://arxiv.org/abs/2402.01613.
"""

from __future__ import annotations

from typing import Any

import torch

from glimodern import ops

from .layer_chain import ChainedFamily, Layer, as_published, gate_of, post_norm_chain


def _chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    layers = model.layers[: model.config.num_hidden_layers]
    if not as_published(model.layers):
        return None
    return post_norm_chain(dtype, [_layer(layer) for layer in layers], rotary=True)


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    heads = attention.q_proj.out_features // attention.head_dim
    return Layer(
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, heads, heads, attention.scaling,
        layer.post_attention_layernorm, gate_of(mlp.gate_proj, mlp.up_proj), mlp.act_fn, mlp.down_proj,
        layer.post_mlp_layernorm,
    )  # fmt: skip


NOMIC_BERT = ChainedFamily(_chain, ("layers",), rotary=True)
