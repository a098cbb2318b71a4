"""transformers' layers as one chain of operators (`ops.Chain`): what the families of encoders share.

A family describes its layers as `Layer`s and says how its hidden states begin (`ChainedFamily`). Its chain is then

    post-norm:  x = norm(x + Wo attention(x)),  x = norm(x + W2 act(W1 x))
    pre-norm:   x = x + Wo attention(norm(x)),  x = x + W2 act(W1 norm(x)),  and a norm at the end

with rotary positions or without, and with keys and values that several queries share or without. act(W1 x) may be
gated. In the last layer, everything after attention is computed for the requested tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.layers.attention import Packing
from glimodern.layers.chained import Build, Chained
from glimodern.layers.packed_layers import PackedFactor, PackedGate
from glimodern.layers.packed_linear import PackedLinear


class Layer(NamedTuple):
    """A layer's modules and sizes.

    heads, key_heads: of the queries, and of keys and values. scale: of the scores; None: 1 / sqrt(head width).
    attention_norm, feed_forward_norm: after attention and feed-forward in a post-norm layer, before them otherwise.
    up: W1 with the activation in its epilogue. activation: the module that then stands in the activation's place.
    positions: terms of the scores by relative distance.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    heads: int
    key_heads: int
    scale: float | None
    attention_norm: nn.Module
    up: nn.Module
    activation: nn.Module
    down: nn.Module
    feed_forward_norm: nn.Module
    positions: ops.RelativePositions | None = None

    @property
    def linears(self) -> tuple[Any, ...]:
        return self.query, self.key, self.value, self.output, self.up, self.down


def as_published(*roots: nn.Module) -> bool:
    """Whether layers consist of transformers' and this package's modules only: no adapter, no wrapper."""
    modules = [module for root in roots for module in root.modules()]
    return all(_is_container(module) if module._modules else _is_leaf(module) for module in modules)


def _is_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.")


def _is_container(module: nn.Module) -> bool:
    return type(module) is nn.ModuleList or _is_transformers(module)


def _is_rms_norm(module: nn.Module) -> bool:
    return _is_transformers(module) and type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))


def _is_leaf(module: nn.Module) -> bool:
    table = type(module) is nn.Embedding  # of relative positions
    return table or isinstance(module, (PackedLinear, nn.LayerNorm, nn.Identity, nn.Dropout)) or _is_rms_norm(module)


class _Widths(NamedTuple):
    """Widths of buffers, and the heads, that all layers of a chain share."""

    hidden: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    intermediate: int


def _widths(layer: Layer) -> _Widths | None:
    """Return the widths of a layer; None if it cannot be part of a chain, because a linear layer is not packed, say."""
    packed = all(type(linear) is PackedLinear for linear in layer.linears if linear is not layer.up)
    if not packed or type(layer.up) not in (PackedLinear, PackedGate) or type(layer.activation) is not nn.Identity:
        return None
    query, key, value, output, up, down = layer.linears
    hidden, heads, keys = output.out_features, layer.heads, layer.key_heads
    widths = _Widths(hidden, query.out_features, key.out_features, heads, keys, up.out_features)
    inputs = [linear.in_features for linear in (query, key, value, up)]
    fits = inputs == [hidden] * 4 and (output.in_features, down.in_features) == (widths.queries, widths.intermediate)
    fits = fits and (down.out_features, value.out_features) == (hidden, widths.keys)
    grouped = heads > 0 and keys > 0 and heads % keys == 0 and widths.queries % heads == 0
    if not fits or not grouped or widths.queries // heads * keys != widths.keys:
        return None  # heads or neurons were pruned
    return widths


class _Steps:
    """A chain under construction, with the buffers that its layers share."""

    def __init__(self, dtype: torch.dtype, layers: Sequence[Layer], widths: _Widths, width: int, rotary: bool) -> None:
        self.chain, self.layers, self.widths, self.rotary = ops.Chain(dtype, width), layers, widths, rotary
        hidden, queries, keys, repeats = widths.hidden, widths.queries, widths.keys, widths.heads // widths.key_heads
        buffer = self.chain.buffer
        self.q, self.context, self.k, self.v = buffer(queries), buffer(queries), buffer(keys), buffer(keys)
        self.rotated_q, self.rotated_k = (buffer(queries), buffer(keys)) if rotary else (self.q, self.k)
        self.all_k, self.all_v = (buffer(queries), buffer(queries)) if repeats > 1 else (self.rotated_k, self.v)
        self.branch, self.normed, self.intermediate = buffer(hidden), buffer(hidden), buffer(widths.intermediate)

    def linear(self, src: int, layer: Any, dst: int) -> None:
        self.chain.linear(src, layer.packed, dst, layer.activation, layer.low_rank)

    def norm(self, x: int, residual: int | None, module: Any, dst: int, store_sum: bool = False) -> None:
        if _is_rms_norm(module):
            self.chain.add_rms_norm(x, residual, dst, module.weight, module.variance_epsilon, store_sum)
        else:
            self.chain.add_layer_norm(x, residual, dst, module.weight, module.bias, module.eps, store_sum)

    def attention(self, x: int, layer: Layer) -> None:
        """Fill `context` from x."""
        for module, dst in ((layer.query, self.q), (layer.key, self.k), (layer.value, self.v)):
            self.linear(x, module, dst)
        heads, key_heads = self.widths.heads, self.widths.key_heads
        if self.rotary:
            self.chain.rotary(ops.Columns(self.q), self.rotated_q, 0, heads)
            self.chain.rotary(ops.Columns(self.k), self.rotated_k, 0, key_heads)
        if heads > key_heads:
            self.chain.repeat_heads(self.rotated_k, self.all_k, key_heads, heads // key_heads)
            self.chain.repeat_heads(self.v, self.all_v, key_heads, heads // key_heads)
        q, k, v = (ops.Columns(buffer) for buffer in (self.rotated_q, self.all_k, self.all_v))
        self.chain.attention(q, k, v, self.context, heads, scale=layer.scale, positions=layer.positions)

    def feed_forward(self, x: int, layer: Layer) -> None:
        """Fill `branch` from x."""
        self.linear(x, layer.up, self.intermediate)
        self.linear(self.intermediate, layer.down, self.branch)


def _steps(
    dtype: torch.dtype, layers: Sequence[Layer], projection: nn.Module | None = None, rotary: bool = False
) -> _Steps | None:
    widths = {_widths(layer) for layer in layers}
    shared = widths.pop() if len(widths) == 1 else None
    if shared is None:
        return None
    if projection is None:
        return _Steps(dtype, layers, shared, shared.hidden, rotary)
    if type(projection) is not PackedLinear or projection.out_features != shared.hidden:
        return None
    return _Steps(dtype, layers, shared, projection.in_features, rotary)


def post_norm_chain(
    dtype: torch.dtype, layers: Sequence[Layer], *, projection: nn.Module | None = None, rotary: bool = False
) -> ops.Chain | None:
    """Build post-norm layers as a chain; None if they cannot be one. projection: a linear layer before the first."""
    steps = _steps(dtype, layers, projection, rotary)
    if steps is None:
        return None
    chain, hidden, x, context = steps.chain, steps.widths.hidden, 0, steps.context
    output = chain.buffer(hidden)
    if projection is not None:
        x = chain.buffer(hidden)
        steps.linear(0, projection, x)
    for number, layer in enumerate(layers):
        last = number + 1 == len(layers)
        steps.attention(x, layer)
        if last:
            context, x = chain.keep(context, x)
        steps.linear(context, layer.output, steps.branch)
        steps.norm(steps.branch, x, layer.attention_norm, steps.normed)
        steps.feed_forward(steps.normed, layer)
        x = chain.buffer(hidden) if last else output
        steps.norm(steps.branch, steps.normed, layer.feed_forward_norm, x)
    return chain


def pre_norm_chain(
    dtype: torch.dtype, layers: Sequence[Layer], final_norm: nn.Module, *, rotary: bool = False
) -> ops.Chain | None:
    """Build pre-norm layers and the norm after them as a chain; None if they cannot be one."""
    steps = _steps(dtype, layers, rotary=rotary)
    if steps is None:
        return None
    chain, context, residual = steps.chain, steps.context, 0
    for number, layer in enumerate(layers):
        if number == 0:
            steps.norm(residual, None, layer.attention_norm, steps.normed)
        else:
            steps.norm(steps.branch, residual, layer.attention_norm, steps.normed, store_sum=True)
        steps.attention(steps.normed, layer)
        if number + 1 == len(layers):
            context, residual = chain.keep(context, residual)
        steps.linear(context, layer.output, steps.branch)
        steps.norm(steps.branch, residual, layer.feed_forward_norm, steps.normed, store_sum=True)
        steps.feed_forward(steps.normed, layer)
    steps.norm(steps.branch, residual, final_norm, chain.buffer(steps.widths.hidden))
    return chain


def gate_of(gate: nn.Module, factor: nn.Module) -> nn.Module:
    """Return the gated W1 of two layers whose results a model multiplies; a plain layer if the two are not one."""
    return gate if type(gate) is PackedGate and type(factor) is PackedFactor else nn.Identity()


def embeddings(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Call a model's module `embeddings`: input_ids, position_ids int64 [N] -> [N, d]."""
    x: Tensor = model.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
    return x


def run_chain(
    chained: Chained | None,
    model: Any,
    x: Tensor,
    packing: Packing,
    rows: Tensor | None,
    modules: Sequence[str] = ("encoder",),
    tables: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor | None:
    """Run a model's layers on the first layer's input x [N, d] as a chain: -> hidden [r or N, d]; None if it cannot.

    rows: int64 [r], or None for all. modules: names of the submodules that the chain replaces. tables: see `Chain.run`.
    """
    chain = None if chained is None else chained.of(model, x, *(model.get_submodule(name) for name in modules))
    if chain is None:
        return None
    kept = torch.arange(len(x), device=x.device) if rows is None else rows
    return chain.run(x, packing.cu_seqlens, kept, tables, check_offsets=len(x) != packing.tokens)


class ChainedFamily(NamedTuple):
    """How the models of a family run as a chain.

    build: see `Chained`. modules: names of the submodules that the chain replaces. embed: (model, input_ids int64 [N],
    position_ids int64 [N]) -> the first layer's input [N, d]. rotary: whether the model has rotary positions.
    """

    build: Build
    modules: tuple[str, ...]
    embed: Callable[[Any, Tensor, Tensor], Tensor] = embeddings
    rotary: bool = False

    def run(
        self,
        chained: Chained,
        model: Any,
        input_ids: Tensor,
        position_ids: Tensor,
        packing: Packing,
        rows: Tensor | None,
    ) -> Tensor | None:
        """Encode packed tokens: rows int64 [r] or None for all -> hidden [r or N, d]; None if the modules must run."""
        x = self.embed(model, input_ids, position_ids)
        tables = [rotary_angles(model, position_ids)] if self.rotary else []
        return run_chain(chained, model, x, packing, rows, self.modules, tables)


def rotary_angles(model: Any, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cos and sin fp32 [N, head width / 2] by the model's module for rotary positions."""
    like = torch.empty(0, dtype=torch.float32, device=position_ids.device)  # the module takes dtype and device from it
    cos, sin = (angles[0].chunk(2, dim=-1)[0] for angles in model.rotary_emb(like, position_ids[None]))
    return cos, sin
