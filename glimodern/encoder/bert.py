"""A packed forward pass for BERT and related models (RoBERTa, ELECTRA, ...), through transformers' modules.

    x = embeddings(ids)                                     transformers' module, positions counted in each text
    x = norm(x + drop(Wo attention(Wq x, Wk x, Wv x)))
    x = norm(x + drop(W2 act(W1 x)))

In the last layer, everything after attention is computed for the requested tokens only. Parameters and modules stay
transformers' own, so a module that replaces one of them (an adapter, a quantised layer) is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def run_chain(chained: Chained | None, model: Any, x: Tensor, packing: Packing, rows: Tensor | None) -> Tensor | None:
    """Run the layers of `model.encoder` on embeddings x as a chain; None if they cannot run as one."""
    chain = None if chained is None else chained.of(model, x, model.encoder)
    if chain is None:
        return None
    kept = torch.arange(len(x), device=x.device) if rows is None else rows
    return chain.run(x, packing.cu_seqlens, kept, check_offsets=len(x) != packing.tokens)


def _attention(module: Any, x: Tensor, packing: Packing) -> Tensor:
    heads: int = module.num_attention_heads
    q, k, v = (linear(x).unflatten(-1, (heads, -1)) for linear in (module.query, module.key, module.value))
    dropout_p = module.dropout.p if module.training else 0.0
    return packed_attention(q, k, v, packing, dropout_p=dropout_p).flatten(1)


class ChainLayer(NamedTuple):
    """The modules of a layer of BERT's structure, and what its attention takes beside q, k and v."""

    query: Any
    key: Any
    value: Any
    output: Any
    norm: nn.LayerNorm
    intermediate: Any  # transformers' module of `dense` and `intermediate_act_fn`
    last: Any  # transformers' module of `dense` and `LayerNorm`
    heads: int
    scale: float | None = None
    positions: ops.RelativePositions | None = None

    @property
    def linears(self) -> tuple[Any, ...]:
        return self.query, self.key, self.value, self.output, self.intermediate.dense, self.last.dense


def _as_published(encoder: nn.Module) -> bool:
    """Whether the layers consist of transformers' and this package's modules only: no adapter, no wrapper."""
    leaves = (PackedLinear, nn.LayerNorm, nn.Identity, nn.Dropout)
    tables = (nn.Embedding,)  # of relative positions
    return all(
        _is_container(module) if module._modules else isinstance(module, leaves) or type(module) in tables
        for module in encoder.modules()
    )


def _is_container(module: nn.Module) -> bool:
    return type(module) is nn.ModuleList or type(module).__module__.startswith("transformers.models.")


def layers_can_chain(encoder: nn.Module, layers: Sequence[ChainLayer]) -> bool:
    """Whether layers can be one chain of operators.

    That needs published modules in the encoder, packed linear layers with the GELU in their epilogue, and layers of
    equal widths.
    """
    if not layers or not _as_published(encoder):
        return False
    fused = all(type(layer.intermediate.intermediate_act_fn) is nn.Identity for layer in layers)
    if not fused or not all_packed(linear for layer in layers for linear in layer.linears):
        return False
    d = layers[0].last.dense.out_features
    neurons = {layer.intermediate.dense.out_features for layer in layers}
    heads = [(layer.query.out_features, layer.heads) for layer in layers]
    return len(neurons) == 1 and not any(width != d or d % count for width, count in heads)  # else some were pruned


def chain_of_layers(layers: Sequence[ChainLayer], dtype: torch.dtype) -> ops.Chain:
    """Build layers for which `layers_can_chain` as one chain of operators."""
    d = layers[0].last.dense.out_features
    chain, x = ops.Chain(dtype, d), 0
    q, k, v, context, branch, attended, output = (chain.buffer(d) for _ in range(7))
    intermediate = chain.buffer(layers[0].intermediate.dense.out_features)

    def linear(src: int, layer: Any, dst: int) -> None:
        chain.linear(src, layer.packed, dst, layer.activation, layer.low_rank)

    def add_norm(residual: int, norm: nn.LayerNorm, dst: int) -> None:
        chain.add_layer_norm(branch, residual, dst, norm.weight, norm.bias, norm.eps)

    for number, layer in enumerate(layers):
        last = number + 1 == len(layers)
        for module, dst in ((layer.query, q), (layer.key, k), (layer.value, v)):
            linear(x, module, dst)
        columns = (ops.Columns(q), ops.Columns(k), ops.Columns(v))
        chain.attention(*columns, context, layer.heads, scale=layer.scale, positions=layer.positions)
        if last:
            context, x = chain.keep(context, x)
        linear(context, layer.output, branch)
        add_norm(x, layer.norm, attended)
        linear(attended, layer.intermediate.dense, intermediate)
        linear(intermediate, layer.last.dense, branch)
        x = chain.buffer(d) if last else output
        add_norm(attended, layer.last.LayerNorm, x)
    return chain


def bert_chain(model: Any, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers as one chain of operators; None if they cannot be one."""
    layers = []
    for layer in model.encoder.layer:
        own, output = layer.attention.self, layer.attention.output
        linears = (own.query, own.key, own.value, output.dense)
        layers.append(ChainLayer(*linears, output.LayerNorm, layer.intermediate, layer.output, own.num_attention_heads))
    return chain_of_layers(layers, dtype) if layers_can_chain(model.encoder, layers) else None
