"""A packed forward pass for BERT and related models (RoBERTa, ELECTRA, ...), through transformers' modules.

    x = embeddings(ids)                                     transformers' module, positions counted in each text
    x = norm(x + drop(Wo attention(Wq x, Wk x, Wv x)))
    x = norm(x + drop(W2 act(W1 x)))

In the last layer, everything after attention is computed for the requested tokens only. Parameters and modules stay
transformers' own, so a module that replaces one of them (an adapter, a quantised layer) is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimodern import ops
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained

from .layer_chain import Layer, as_published, embeddings, post_norm_chain, run_chain

# model_type of architectures built from BERT's layer. tests/test_encoder.py compares each with its own padded run.
BERT_MODELS = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")


def bert_forward(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    packing: Packing,
    rows: Tensor | None,
    chained: Chained | None = None,
) -> Tensor:
    """Encode packed tokens: input_ids, position_ids int64 [N], rows int64 [r] or None -> hidden [r or N, hidden_size].

    chained: the cache of the model's operator chain, if it may run as one.
    """
    x = embeddings(model, input_ids, position_ids)
    if hasattr(model, "embeddings_project"):
        x = model.embeddings_project(x)
    done = run_chain(chained, model, x, packing, rows)
    if done is not None:
        return done
    layers = model.encoder.layer
    for number, layer in enumerate(layers):
        context = _attention(layer.attention.self, x, packing)
        if rows is not None and number + 1 == len(layers):
            context, x = context.index_select(0, rows), x.index_select(0, rows)
        x = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(x), x)
    return x if rows is None or len(layers) else x.index_select(0, rows)


def _attention(module: Any, x: Tensor, packing: Packing) -> Tensor:
    heads: int = module.num_attention_heads
    q, k, v = (linear(x).unflatten(-1, (heads, -1)) for linear in (module.query, module.key, module.value))
    dropout_p = module.dropout.p if module.training else 0.0
    return packed_attention(q, k, v, packing, dropout_p=dropout_p).flatten(1)


def bert_chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers as one chain of operators; None if they cannot be one.

    A chain needs published modules, packed linear layers with the activation in their epilogue, and layers of equal
    widths.
    """
    layers = [_layer(layer) for layer in model.encoder.layer] if as_published(model.encoder) else []
    return post_norm_chain(dtype, layers)


def _layer(layer: Any) -> Layer:
    attention, up, heads = layer.attention.self, layer.intermediate, layer.attention.self.num_attention_heads
    return Layer(
        attention.query, attention.key, attention.value, layer.attention.output.dense, heads, heads, None,
        layer.attention.output.LayerNorm, up.dense, up.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
    )  # fmt: skip
