"""XLM-RoBERTa-XL's layers as one chain of operators: BERT's layers with the norms first. https://arxiv.org/abs/2105.00572"""

from __future__ import annotations

from typing import Any

import torch

from glimodern import ops

from .layer_chain import ChainedFamily, Layer, as_published, pre_norm_chain


def _chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    layers = [_layer(layer) for layer in model.encoder.layer] if as_published(model.encoder) else []
    return pre_norm_chain(dtype, layers, model.encoder.LayerNorm)


def _layer(layer: Any) -> Layer:
    attention, up, heads = layer.attention.self, layer.intermediate, layer.attention.self.num_attention_heads
    return Layer(
        attention.query, attention.key, attention.value, layer.attention.output.dense, heads, heads, attention.scaling,
        layer.attention.self_attn_layer_norm, up.dense, up.intermediate_act_fn, layer.output.dense, layer.LayerNorm,
    )  # fmt: skip


XLM_ROBERTA_XL = ChainedFamily(_chain, ("encoder",))
