"""Any transformers encoder on packed texts; the only module of this package that pads.

A model runs packed if attention is its only exchange between tokens and if it accepts position ids: one row of N
tokens, with each text's positions counted from 0. `_PASSES` lists the architectures that run a forward pass of this
package. `_BY_INTERFACE` lists those that run transformers' forward pass, with an attention function registered under
`PACKED` that keeps every query inside its text; once packed for inference, their layers run as a chain of operators.
Tests compare each of them with its own padded run. All other architectures are padded, in groups of texts of similar
length, or of equal length where the model takes no mask (FNet).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Build, Chained
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_embedding import packed_embedding
from glimodern.layers.packed_layers import pack_layers
from glimodern.layers.packed_linear import packed_linear
from glimodern.layers.relative_attention import group_texts

from .albert import ALBERT
from .base import Encoder
from .bert import BERT_MODELS, bert_chain, bert_forward
from .deberta import DEBERTA_MODELS, deberta_chain, deberta_forward
from .distilbert import DISTILBERT
from .eurobert import EUROBERT
from .layer_chain import ChainedFamily
from .mpnet import mpnet_chain, mpnet_forward
from .nomic_bert import NOMIC_BERT
from .t5 import T5_MODELS, t5_chain, t5_forward
from .xlm_roberta_xl import XLM_ROBERTA_XL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = "glimodern_packed"


Forward = Callable[..., Tensor]
"""A packed forward pass: (transformers model, input_ids int64 [N], position_ids int64 [N], packing, rows int64 [r] or
None for all, chained: the cache of the model's chain) -> hidden states [r or N, hidden_size]."""

_PASSES: dict[str, tuple[Forward, Build]] = {  # a pass, and how its layers become a chain
    **dict.fromkeys(BERT_MODELS, (bert_forward, bert_chain)),
    **dict.fromkeys(DEBERTA_MODELS, (deberta_forward, deberta_chain)),
    **dict.fromkeys(T5_MODELS, (t5_forward, t5_chain)),
    "mpnet": (mpnet_forward, mpnet_chain),
}
_BY_INTERFACE: dict[str, ChainedFamily] = {
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    "eurobert": EUROBERT,
    "nomic_bert": NOMIC_BERT,
    "xlm-roberta-xl": XLM_ROBERTA_XL,
}
PACKED_MODELS = (*_PASSES, *_BY_INTERFACE)
"""model_type of every architecture that runs packed."""
_PADDED_THAT_PACK = ("deberta",)  # texts are padded, but linear layers can be packed for inference
# The submodule that holds a model's layers, whose linear layers are packed for inference. The pooler is not used, so it
# is not packed. Default: "encoder".
_LAYERS = {"distilbert": "transformer", "eurobert": "layers", "nomic_bert": "layers"}
# Positions start at pad_token_id + 1, packed or padded. MPNet's start at 2, whatever its config says.
_POSITIONS_AFTER_PADDING = ("camembert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a text's first token: 0, pad_token_id + 1 for RoBERTa and related models, 2 for MPNet."""
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return int(config.pad_token_id) + 1
    return 2 if config.model_type == "mpnet" else 0


def max_length(config: PreTrainedConfig) -> int | None:
    """Maximum tokens of one text that the model's positions allow; None for relative positions without a limit."""
    if config.model_type in ("deberta", "deberta-v2") and not getattr(config, "position_biased_input", True):
        return None
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - first_position(config)


def packed_reason(config: PreTrainedConfig) -> tuple[bool, str]:
    """Return whether a model with this config runs packed, and the reason."""
    model_type = config.model_type
    if model_type not in PACKED_MODELS:
        return False, f"padded: {model_type} is not among the architectures that run packed"
    if getattr(config, "is_decoder", False):
        return False, f"padded: this {model_type} is configured as a decoder (is_decoder), whose attention is causal"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return False, f"padded: position_embedding_type {config.position_embedding_type!r} is not absolute"
    if model_type in _BY_INTERFACE:
        return True, f"packed: {model_type} takes position_ids, and its attention is ours"
    return True, f"packed: our own pass through {model_type}"


class _Call:
    """State of one forward pass, passed through the model to its attention layers. layers: attention calls so far."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.layers = 0


def _packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    glimodern_call: _Call | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention inside each text, as transformers' attention interface.

    query [1, heads, N, head_dim] -> (output [1, N, heads, head_dim], None). Raises ValueError if the model was not
    called by its `TransformersEncoder`.
    """
    if glimodern_call is None:
        raise ValueError(
            f"model: expected a call by its encoder, got {type(module).__name__} called directly with the attention "
            f"{PACKED!r}; call the encoder, or model.set_attn_implementation('sdpa') to run the transformers model by "
            "itself"
        )
    glimodern_call.layers += 1
    repeats = query.shape[1] // key.shape[1]  # grouped-query attention: a group of queries shares one key and value
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_attention(q, k, v, glimodern_call.packing, scale=scaling, dropout_p=dropout)[None], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


class TransformersEncoder(Encoder):
    """A transformers encoder. Parameter names are `model.<transformers' names>`.

    Dropout modules become `glimodern.layers.dropout.Dropout`, whose mask is cheaper on CPUs; module names stay. A
    pooler is kept because checkpoints store it, and frozen because no gradient reaches it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = config = model.config
        self.model_type = config.model_type
        self.model: PreTrainedModel = model
        self.packed, self.packed_reason = packed_reason(config)
        if self.packed and config.model_type in BERT_MODELS:
            self.capturable, self.heads = True, config.num_attention_heads
        self.hidden_size = int(config.hidden_size)
        self.max_length = max_length(config)
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
        self._pass: Forward | None = None
        if self.packed and config.model_type in _PASSES:
            forward, build = _PASSES[config.model_type]
            self._pass = functools.partial(forward, chained=Chained(build))
        self._chained: Chained | None = None  # of a family in `_BY_INTERFACE`, once its layers are packed
        if self.packed and self._pass is None:
            from transformers import AttentionInterface, AttentionMaskInterface

            AttentionInterface.register(PACKED, _packed_attention_forward)
            AttentionMaskInterface.register(PACKED, _no_mask)
            model.set_attn_implementation(PACKED)
        for module in model.modules():
            if type(module) is nn.Dropout:
                module.__class__ = Dropout
        pooler = getattr(model, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)

    def encode(self, input_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
        """Encode packed tokens: input_ids int64 [N], rows int64 [r] or None for all N -> hidden [r, hidden_size]."""
        if input_ids.numel() == 0:
            return next(self.model.parameters()).new_empty(0, self.hidden_size)
        if self._pass is not None:
            return self._pass(self.model, input_ids, self._positions(packing), packing, rows)
        if self._chained is not None:  # where the chain cannot run, transformers' pass computes the embeddings again
            family, positions = _BY_INTERFACE[self.config.model_type], self._positions(packing)
            chained = family.run(self._chained, self.model, input_ids, positions, packing, rows)
            if chained is not None:
                return chained
        hidden = self._packed(input_ids, packing) if self.packed else self._padded(input_ids, packing)
        return hidden if rows is None else hidden.index_select(0, rows)

    def _positions(self, packing: Packing) -> Tensor:
        return packing.position_ids + first_position(self.config)

    def _packed(self, input_ids: Tensor, packing: Packing) -> Tensor:
        call = _Call(packing)
        positions = self._positions(packing)[None]
        output = self.model(input_ids=input_ids[None], position_ids=positions, glimodern_call=call)
        if call.layers == 0:
            raise RuntimeError(
                f"this version of transformers runs {self.config.model_type} without its attention interface, so that "
                "texts would see each other; install a tested version (constraints.txt)"
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _padded(self, input_ids: Tensor, packing: Packing) -> Tensor:
        groups = packing.groups if self._takes_mask else group_texts(packing, padding=False)
        padding = self.config.pad_token_id
        outs = []
        for group in groups.groups:
            shape = group.texts, group.length
            ids = input_ids[group.rows].view(shape)
            inputs: dict[str, Tensor] = {}
            if self._takes_mask:
                inputs["attention_mask"] = torch.ones_like(ids)
            if group.padded is not None:
                padded = group.padded.view(shape)
                ids = ids.masked_fill(padded, 0 if padding is None else padding)
                inputs["attention_mask"] = (~padded).long()
            outs.append(self.model(input_ids=ids, **inputs).last_hidden_state.flatten(0, 1))
        hidden = torch.cat(outs)
        return hidden if groups.order is None else hidden.index_select(0, groups.order)

    def pack(self, dtype: str) -> bool:
        # Other architectures may read a layer's weight, which a packed layer does not have.
        if not self.packed and self.config.model_type not in _PADDED_THAT_PACK:
            return False
        pack_layers(self.model.get_submodule(_LAYERS.get(self.config.model_type, "encoder")), dtype)
        for parent, name in (
            (self.model, "embeddings_project"),
            (getattr(self.model, "embeddings", None), "embed_proj"),
        ):
            project = getattr(parent, name, None)  # between embeddings and layers: ELECTRA's, DeBERTa's
            if isinstance(project, nn.Linear):
                setattr(parent, name, packed_linear(project, "fp32" if dtype == "int8" else dtype))
        self.model.set_input_embeddings(packed_embedding(self.model.get_input_embeddings(), dtype))
        if self.config.model_type in _BY_INTERFACE:
            self._chained = Chained(_BY_INTERFACE[self.config.model_type].build)
        return True

    def resize_token_embeddings(self, size: int) -> None:
        """Resize the vocabulary to `size` tokens; new rows are drawn like the model's initial weights."""
        self._check_size(size)
        self.model.resize_token_embeddings(size, mean_resizing=False)
