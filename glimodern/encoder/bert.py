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
from torch import Tensor, nn

from glimodern import ops
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.layers.packed_linear import PackedLinear, all_packed

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
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    if hasattr(model, "embeddings_project"):
        x = model.embeddings_project(x)
    chain = None if chained is None else chained.of(model, x, model.encoder)
    if chain is not None:
        kept = torch.arange(len(x), device=x.device) if rows is None else rows
        return chain.run(x, packing.cu_seqlens, kept, check_offsets=len(x) != packing.tokens)
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


def _as_published(encoder: nn.Module) -> bool:
    """Whether the layers consist of transformers' and this package's modules only: no adapter, no wrapper."""
    leaves = (PackedLinear, nn.LayerNorm, nn.Identity, nn.Dropout)
    return all(_is_container(module) if module._modules else isinstance(module, leaves) for module in encoder.modules())


def _is_container(module: nn.Module) -> bool:
    return type(module) is nn.ModuleList or type(module).__module__.startswith("transformers.models.")


def _linears(layer: Any) -> tuple[nn.Module, ...]:
    attention = layer.attention.self
    dense = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    return (attention.query, attention.key, attention.value, *dense)


def bert_chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers as one chain of operators; None if they cannot be one.

    A chain needs published modules, packed linear layers with the GELU in their epilogue, and layers of equal widths.
    """
    layers = list(model.encoder.layer)
    if not layers or not _as_published(model.encoder):
        return None
    linears = [linear for layer in layers for linear in _linears(layer)]
    fused = all(type(layer.intermediate.intermediate_act_fn) is nn.Identity for layer in layers)
    if not fused or not all_packed(linears):
        return None
    d = layers[0].output.dense.out_features
    intermediate_sizes = {layer.intermediate.dense.out_features for layer in layers}
    heads = [(layer.attention.self.query.out_features, layer.attention.self.num_attention_heads) for layer in layers]
    if len(intermediate_sizes) > 1 or any(width != d or d % count for width, count in heads):
        return None  # heads or neurons were pruned
    chain, x = ops.Chain(dtype, d), 0
    q, k, v, context, branch, attended, output = (chain.buffer(d) for _ in range(7))
    intermediate = chain.buffer(*intermediate_sizes)

    def linear(src: int, layer: Any, dst: int) -> None:
        chain.linear(src, layer.packed, dst, layer.activation, layer.low_rank)

    def add_norm(residual: int, norm: nn.LayerNorm, dst: int) -> None:
        chain.add_layer_norm(branch, residual, dst, norm.weight, norm.bias, norm.eps)

    for number, layer in enumerate(layers):
        attention, last = layer.attention.self, number + 1 == len(layers)
        for module, dst in ((attention.query, q), (attention.key, k), (attention.value, v)):
            linear(x, module, dst)
        chain.attention(ops.Columns(q), ops.Columns(k), ops.Columns(v), context, attention.num_attention_heads)
        if last:
            context, x = chain.keep(context, x)
        linear(context, layer.attention.output.dense, branch)
        add_norm(x, layer.attention.output.LayerNorm, attended)
        linear(attended, layer.intermediate.dense, intermediate)
        linear(intermediate, layer.output.dense, branch)
        x = chain.buffer(d) if last else output
        add_norm(attended, layer.output.LayerNorm, x)
    return chain
