"""ALBERT's layers as one chain of operators: BERT's layers, few of them, each run several times.

    x = Wp embeddings(ids)                                  wider than the embeddings
    x = norm(x + Wo attention(x)), x = norm(x + W2 act(W1 x))    by the groups of layers in turn

Model: https://arxiv.org/abs/1909.11942.
"""

from __future__ import annotations

from typing import Any

import torch

from glimodern import ops

from .layer_chain import ChainedFamily, Layer, as_published, post_norm_chain


def _chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    encoder = model.encoder
    if not as_published(encoder):
        return None
    count, groups = encoder.config.num_hidden_layers, encoder.albert_layer_groups
    # as AlbertTransformer.forward chooses a layer's group
    chosen = [groups[int(number / (count / encoder.config.num_hidden_groups))] for number in range(count)]
    layers = [_layer(layer) for group in chosen for layer in group.albert_layers]
    return post_norm_chain(dtype, layers, projection=encoder.embedding_hidden_mapping_in)


def _layer(layer: Any) -> Layer:
    attention, heads = layer.attention, layer.attention.num_attention_heads
    return Layer(
        attention.query, attention.key, attention.value, attention.dense, heads, heads, attention.scaling,
        attention.LayerNorm, layer.ffn, layer.activation, layer.ffn_output, layer.full_layer_layer_norm,
    )  # fmt: skip


ALBERT = ChainedFamily(_chain, ("encoder",))
