"""DistilBERT's layers as one chain of operators: BERT's layers under other names."""

from __future__ import annotations

from typing import Any

import torch

from glimodern import ops

from .layer_chain import ChainedFamily, Layer, as_published, post_norm_chain


def _chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    layers = [_layer(layer) for layer in model.transformer.layer] if as_published(model.transformer) else []
    return post_norm_chain(dtype, layers)


def _layer(layer: Any) -> Layer:
    attention, ffn = layer.attention, layer.ffn
    return Layer(
        attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, attention.n_heads, attention.n_heads,
        attention.scaling, layer.sa_layer_norm, ffn.lin1, ffn.activation, ffn.lin2, layer.output_layer_norm,
    )  # fmt: skip


DISTILBERT = ChainedFamily(_chain, ("transformer",))
