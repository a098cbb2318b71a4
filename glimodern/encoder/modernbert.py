"""ModernBERT on packed texts, with the parameter names of the public checkpoints.

    x = norm(tok_embeddings(ids))
    x = x + Wo attention(rotary(Wqkv attn_norm(x)))            attn_norm of the first layer is the identity
    x = x + Wo (act(y1) * y2),   [y1 | y2] = Wi mlp_norm(x)     act is the exact GELU unless the config says otherwise
    hidden = final_norm(x)

Every addition to x is fused with the norm after it (`ops.add_layer_norm`). A layer therefore takes and returns x and
the branch that is not yet added to it.

A layer's attention is global ("full_attention") or limited to |i - j| <= local_attention / 2 ("sliding_attention").
Each layer type has its own rotary base. Model: https://arxiv.org/abs/2412.13663. A test compares with transformers'
ModernBertModel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, cast

import torch
from torch import Tensor, nn

from glimodern import ops
from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_embedding import packed_embedding
from glimodern.layers.packed_linear import PackedLinear, all_packed, pack_linears, packed_linear, packs
from glimodern.layers.rotary import rotary_table
from glimodern.settings import POSITIVE, check_value

from .base import Encoder
from .modernbert_settings import LAYER_TYPES, ModernBertSettings
from .transformers_config import transformers_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

RotaryTable = tuple[Tensor, Tensor]  # cos and sin, fp32 [N, head_dim / 2]


class _Norm(nn.LayerNorm):
    """Layer norm of a sum, with the parameters and names of `nn.LayerNorm`."""

    def __init__(self, settings: ModernBertSettings) -> None:
        super().__init__(settings.hidden_size, eps=settings.norm_eps, bias=settings.norm_bias)

    def forward(self, branch: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute norm(branch + residual) [n, hidden_size]; residual None counts as zero."""
        return ops.add_layer_norm(branch, residual, self.weight, self.bias, self.eps, return_sum=False)

    def norm_and_sum(self, branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (norm(branch + residual), branch + residual)."""
        return ops.add_layer_norm(branch, residual, self.weight, self.bias, self.eps)


class _Embeddings(nn.Module):
    def __init__(self, settings: ModernBertSettings) -> None:
        super().__init__()
        self.tok_embeddings: nn.Module = nn.Embedding(
            settings.vocab_size, settings.hidden_size, padding_idx=settings.pad_token_id
        )
        self.norm = _Norm(settings)
        self.drop = Dropout(settings.embedding_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.norm(self.tok_embeddings(input_ids)))
        return hidden


class _Attention(nn.Module):
    def __init__(self, settings: ModernBertSettings, layer_type: str) -> None:
        super().__init__()
        d = settings.hidden_size
        self.heads = settings.num_attention_heads
        self.window = settings.local_attention // 2 if layer_type == "sliding_attention" else None
        self.dropout_p = float(settings.attention_dropout)
        self.Wqkv = nn.Linear(d, 3 * d, bias=settings.attention_bias)
        self.Wo = nn.Linear(d, d, bias=settings.attention_bias)
        self.out_drop = Dropout(settings.attention_dropout)

    def forward(self, x: Tensor, packing: Packing, rotary: RotaryTable, rows: Tensor | None) -> Tensor:
        n, d = x.shape
        qkv = self.Wqkv(x).view(n, 3, self.heads, d // self.heads)
        qk, v = qkv.split((2, 1), dim=1)
        q, k = ops.rotary(qk, *rotary).unbind(1)
        dropout_p = self.dropout_p if self.training else 0.0
        out = packed_attention(q, k, v.squeeze(1), packing, window=self.window, dropout_p=dropout_p)
        out = out.reshape(n, d)
        projected: Tensor = self.out_drop(self.Wo(out if rows is None else out.index_select(0, rows)))
        return projected


def _activation(name: str) -> nn.Module:
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(
            f"hidden_activation: expected an activation that transformers has, such as 'gelu' or 'silu', got {name!r}"
        )
    module: nn.Module = ACT2FN[name]
    return module


class _Mlp(nn.Module):
    def __init__(self, settings: ModernBertSettings) -> None:
        super().__init__()
        self.gelu = settings.hidden_activation == "gelu"
        self.Wi: nn.Module = nn.Linear(settings.hidden_size, 2 * settings.intermediate_size, bias=settings.mlp_bias)
        self.act = None if self.gelu else _activation(settings.hidden_activation)
        self.drop = Dropout(settings.mlp_dropout)
        self.Wo = nn.Linear(settings.intermediate_size, settings.hidden_size, bias=settings.mlp_bias)

    def pack(self, dtype: str) -> None:
        """Pack the first linear layer with the GeGLU in its epilogue, if the activation is GELU."""
        if self.gelu and isinstance(self.Wi, nn.Linear) and packs(self.Wi):
            self.Wi = packed_linear(self.Wi, dtype, "geglu")

    def forward(self, x: Tensor) -> Tensor:
        gated = self.Wi(x)
        if self.act is not None:
            value, gate = gated.chunk(2, dim=-1)
            gated = self.act(value) * gate
        elif not isinstance(self.Wi, PackedLinear) or self.Wi.activation != "geglu":
            gated = ops.geglu(gated)
        out: Tensor = self.Wo(self.drop(gated))
        return out


class _Layer(nn.Module):
    def __init__(self, settings: ModernBertSettings, layer_type: str, first: bool) -> None:
        super().__init__()
        self.layer_type = layer_type
        self.attn_norm = nn.Identity() if first else _Norm(settings)
        self.attn = _Attention(settings, self.layer_type)
        self.mlp_norm = _Norm(settings)
        self.mlp = _Mlp(settings)

    def forward(
        self, branch: Tensor | None, x: Tensor, packing: Packing, rotary: RotaryTable, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the layer from x and the branch that is not yet added to it.

        branch, x: [n, hidden_size]; branch is None for the first layer. rows: the tokens to return; None: all.
        Returns (the MLP's branch, x with all earlier branches added).
        """
        if branch is None:
            normed = x
        else:
            normed, x = cast(_Norm, self.attn_norm).norm_and_sum(branch, x)
        attended = self.attn(normed, packing, rotary, rows)
        normed, x = self.mlp_norm.norm_and_sum(attended, x if rows is None else x.index_select(0, rows))
        return self.mlp(normed), x


class ModernBert(nn.Module):
    """ModernBERT's modules, with the state dict keys of transformers' ModernBertModel.

    Initial weights are transformers': truncated normals, with a smaller deviation for the last matrix of a residual
    branch.

    Raises ValueError for a rotary scaling other than "default", for unknown layer types and for a padding token outside
    the vocabulary.
    """

    def __init__(self, settings: ModernBertSettings) -> None:
        super().__init__()
        if settings.hidden_size % (2 * settings.num_attention_heads) != 0:
            raise ValueError(
                f"hidden_size: expected a multiple of 2 * num_attention_heads (rotary embeddings rotate pairs), got "
                f"{settings.hidden_size} and {settings.num_attention_heads}; change one of them in the config"
            )
        padding, rows = settings.pad_token_id, settings.vocab_size
        if padding is not None and not -rows <= padding < rows:  # nn.Embedding counts negative ids from the end
            raise ValueError(f"pad_token_id: expected an id below vocab_size ({rows}) or null, got {padding}")
        layer_types = settings.layer_types
        unknown = set(layer_types) - set(LAYER_TYPES)
        if unknown or len(layer_types) != settings.num_hidden_layers:
            raise ValueError(
                f"layer_types: expected full_attention or sliding_attention for each of {settings.num_hidden_layers} "
                f"layers, got {layer_types}"
            )
        self.settings = settings
        self.rotary_base: dict[str, float] = {}
        for layer_type in sorted(set(layer_types)):
            rope = settings.rope_parameters[layer_type]
            if rope.get("rope_type", "default") != "default":
                raise ValueError(
                    f"rope_parameters[{layer_type!r}]: expected rope_type 'default', got {rope['rope_type']!r}; load "
                    "this model in transformers, or set the type to 'default'"
                )
            name, theta = f"rope_parameters[{layer_type!r}]: rope_theta", rope["rope_theta"]
            check_value(name, Annotated[float, POSITIVE], theta)
            self.rotary_base[layer_type] = float(theta)
        self.embeddings = _Embeddings(settings)
        self.layers = nn.ModuleList([_Layer(settings, layer_type, i == 0) for i, layer_type in enumerate(layer_types)])
        self.final_norm = _Norm(settings)
        self._reset_parameters()
        self._chained = Chained(_chain)

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        settings = self.settings
        std = settings.initializer_range
        branch_std = std / math.sqrt(2.0 * settings.num_hidden_layers)
        self._draw(self.embeddings.get_parameter("tok_embeddings.weight"), std)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                self._draw(module.weight, branch_std if name.endswith(".Wo") else std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _draw(self, weight: Tensor, std: float) -> None:
        cutoff = self.settings.initializer_cutoff_factor
        cutoff = 3.0 if cutoff is None else cutoff
        nn.init.trunc_normal_(weight, 0.0, std, -cutoff * std, cutoff * std)

    @torch.no_grad()
    def resize_token_embeddings(self, size: int) -> None:
        """Resize the vocabulary to `size` tokens; new rows are drawn like the initial embeddings."""
        old = cast(nn.Embedding, self.embeddings.tok_embeddings)
        padding = old.padding_idx if old.padding_idx is not None and old.padding_idx < size else None
        new = nn.Embedding(size, old.embedding_dim, padding, device=old.weight.device, dtype=old.weight.dtype)
        self._draw(new.weight, self.settings.initializer_range)
        kept = min(size, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.embeddings.tok_embeddings = new
        self.settings.vocab_size = size

    def forward(self, input_ids: Tensor, packing: Packing, rows: Tensor | None = None) -> Tensor:
        """Encode packed tokens: input_ids int64 [N], rows int64 [r] or None for all N -> hidden [r, hidden_size].

        The result has the parameters' dtype, or autocast's.
        """
        head_dim = self.settings.hidden_size // self.settings.num_attention_heads
        rotary = {t: rotary_table(packing.position_ids, head_dim, base) for t, base in self.rotary_base.items()}
        branch, x = None, self.embeddings(input_ids)
        chain = self._chained.of(self, x, self.layers, self.final_norm)
        if chain is not None:
            kept = torch.arange(len(x), device=x.device) if rows is None else rows
            tables, check = list(rotary.values()), len(x) != packing.tokens
            return chain.run(x, packing.cu_seqlens, kept, tables, check_offsets=check)
        for number, layer in enumerate(self.layers, 1):
            layer_rows = rows if number == len(self.layers) else None
            branch, x = layer(branch, x, packing, rotary[cast(_Layer, layer).layer_type], layer_rows)
        hidden: Tensor = self.final_norm(x) if branch is None else self.final_norm(branch, x)
        return hidden if rows is None or len(self.layers) else hidden.index_select(0, rows)


def _as_built(layer: nn.Module) -> bool:
    """Whether a layer consists of this file's modules, none of them wrapped or replaced."""
    if type(layer) is not _Layer or type(layer.attn) is not _Attention or type(layer.mlp) is not _Mlp:
        return False
    return type(layer.mlp_norm) is _Norm and type(layer.attn_norm) in (_Norm, nn.Identity)


def _chain(model: ModernBert, dtype: torch.dtype) -> ops.Chain | None:
    """Build the layers and the final norm as one chain of operators; None if they cannot be one.

    A chain needs this file's modules, packed linear layers and the GELU activation.
    """
    layers = [cast(_Layer, layer) for layer in model.layers]
    if not layers or not all(_as_built(layer) for layer in layers) or type(model.final_norm) is not _Norm:
        return None
    linears = [linear for layer in layers for linear in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo)]
    if not all(layer.mlp.gelu for layer in layers) or not all_packed(linears):
        return None
    d = model.settings.hidden_size
    chain, residual = ops.Chain(dtype, d), 0
    normed, qkv, rotated, context, branch = (chain.buffer(width) for width in (d, 3 * d, 2 * d, d, d))
    intermediate = chain.buffer(model.settings.intermediate_size)

    def add_norm(norm: nn.Module, dst: int, store_sum: bool = True) -> None:
        norm = cast(_Norm, norm)
        chain.add_layer_norm(branch, residual, dst, norm.weight, norm.bias, norm.eps, store_sum)

    def linear(src: int, layer: nn.Module, dst: int) -> None:
        packed = cast(PackedLinear, layer)
        chain.linear(src, packed.packed, dst, packed.activation, packed.low_rank)

    for number, layer in enumerate(layers):
        if number > 0:
            add_norm(layer.attn_norm, normed)
        linear(normed if number > 0 else residual, layer.attn.Wqkv, qkv)
        table, heads = list(model.rotary_base).index(layer.layer_type), layer.attn.heads
        chain.rotary(ops.Columns(qkv), rotated, table, 2 * heads)
        q, k, v = ops.Columns(rotated), ops.Columns(rotated, d), ops.Columns(qkv, 2 * d)
        chain.attention(q, k, v, context, heads, layer.attn.window)
        if number + 1 == len(layers):
            context, residual = chain.keep(context, residual)
        linear(context, layer.attn.Wo, branch)
        add_norm(layer.mlp_norm, normed)
        linear(normed, layer.mlp.Wi, intermediate)
        linear(intermediate, layer.mlp.Wo, branch)
    add_norm(model.final_norm, chain.buffer(d), store_sum=False)
    return chain


class ModernBertEncoder(Encoder):
    """ModernBERT, always packed. Parameter names are `model.<names of transformers' ModernBertModel>`."""

    def __init__(self, settings: ModernBertSettings) -> None:
        super().__init__()
        self.model: ModernBert = ModernBert(settings)
        self.model_type = "modernbert"
        self.packed, self.packed_reason = True, "packed: our own ModernBERT"
        self.capturable, self.heads = True, settings.num_attention_heads
        self.hidden_size = settings.hidden_size
        self.max_length = settings.max_position_embeddings

    @property
    def config(self) -> PreTrainedConfig:  # type: ignore[override]
        """A transformers config with this model's fields, made anew at every access."""
        return transformers_config(self.model.settings.to_dict())

    def encode(self, input_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
        """Encode packed tokens: input_ids int64 [N], rows int64 [r] or None for all N -> hidden [r, hidden_size]."""
        hidden: Tensor = self.model(input_ids, packing, rows)
        return hidden

    def pack(self, dtype: str) -> bool:
        for layer in self.model.layers:
            cast(_Layer, layer).mlp.pack(dtype)
        pack_linears(self.model, dtype)
        embeddings = self.model.embeddings
        embeddings.tok_embeddings = packed_embedding(embeddings.tok_embeddings, dtype)
        return True

    def resize_token_embeddings(self, size: int) -> None:
        """Resize the vocabulary to `size` tokens; new rows are drawn like the initial embeddings."""
        self._check_size(size)
        self.model.resize_token_embeddings(size)
