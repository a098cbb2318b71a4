"""Any encoder that transformers loads, on packed texts; the one place of this package that pads.

A model whose only contact between tokens is attention, and whose positions can be given, runs packed: one row of N
tokens, each text's positions counted from 0. `_PASSES` names the architectures that take a pass of our own through
their layers, `_BY_INTERFACE` those that run as they are, with attention registered with transformers under `PACKED` so
that every query stays in its text; that each equals its own padded run is tested. All others are padded, texts of like
length together; where the model takes no mask (FNet), of one length.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glimodern.layers.attention import Packing, packed_attention
from glimodern.layers.chained import Chained
from glimodern.layers.dropout import Dropout
from glimodern.layers.packed_linear import pack_layers, packed_linear
from glimodern.layers.relative_attention import group_texts

from .base import Encoder
from .bert import BERT_MODELS, bert_chain, bert_forward
from .deberta import DEBERTA_MODELS, deberta_forward
from .mpnet import mpnet_forward
from .t5 import T5_MODELS, t5_forward

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = "glimodern_packed"


Forward = Callable[[Any, Tensor, Tensor, Packing, Tensor | None], Tensor]
"""Of a transformers model, input_ids and position_ids int64 [N], where the texts lie, and the rows asked for."""

_PASSES: dict[str, Forward] = {
    **dict.fromkeys(BERT_MODELS, bert_forward),
    **dict.fromkeys(DEBERTA_MODELS, deberta_forward),
    **dict.fromkeys(T5_MODELS, t5_forward),
    "mpnet": mpnet_forward,
}
_BY_INTERFACE = ("albert", "distilbert", "eurobert", "nomic_bert", "xlm-roberta-xl")
PACKED_MODELS = (*_PASSES, *_BY_INTERFACE)
"""model_type of architectures that run packed."""
_RELATIVE = (*DEBERTA_MODELS, *T5_MODELS, "mpnet")
_PADDED_THAT_PACK = ("deberta",)  # their linears
# Where a model keeps the layers whose linears are packed for inference: not its pooler, which is not used.
_LAYERS = {"distilbert": "transformer", "eurobert": "layers", "nomic_bert": "layers"}
# Their positions count from pad_token_id + 1, packed or padded; MPNet's from 2, whatever its config says.
_POSITIONS_AFTER_PADDING = ("camembert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")


def first_position(config: PreTrainedConfig) -> int:
    """The position number of a text's first token: 0, but RoBERTa and its kin count from pad_token_id + 1."""
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return int(config.pad_token_id) + 1
    return 2 if config.model_type == "mpnet" else 0


def max_length(config: PreTrainedConfig) -> int | None:
    """How many tokens of one text the model's positions allow; None where they are relative without a limit."""
    if config.model_type in ("deberta", "deberta-v2") and not getattr(config, "position_biased_input", True):
        return None
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - first_position(config)


def packed_reason(config: PreTrainedConfig) -> tuple[bool, str]:
    """Whether a model of this config runs packed, and why or why not."""
    kind = config.model_type
    if kind not in PACKED_MODELS:
        return False, f"padded: {kind} is not among the architectures that run packed"
    if getattr(config, "is_decoder", False):
        return False, f"padded: this {kind} is configured as a decoder (is_decoder), whose attention is causal"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return False, f"padded: position_embedding_type {config.position_embedding_type!r} is not absolute"
    if kind in _BY_INTERFACE:
        return True, f"packed: {kind} takes position_ids, and its attention is ours"
    if kind in _RELATIVE:
        return True, f"packed: our own pass through {kind}, attention by groups of like length for its position bias"
    return True, f"packed: our own pass through {kind}"


class _Call:
    """One forward pass, handed through the model to its attention layers, which count themselves."""

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
    """transformers' attention interface: query [1, heads, N, head_dim] -> [1, N, heads, head_dim]."""
    if glimodern_call is None:
        raise ValueError(
            f"{type(module).__name__} was called outside its encoder, but its attention is {PACKED!r}; call the "
            "encoder, or model.set_attn_implementation('sdpa') to run the transformers model by itself"
        )
    glimodern_call.layers += 1
    repeats = query.shape[1] // key.shape[1]  # queries in a group share a key and a value
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_attention(q, k, v, glimodern_call.packing, scale=scaling, dropout_p=dropout)[None], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


class TransformersEncoder(Encoder):
    """A transformers encoder; parameters are `model.<its own names>`.

    Dropout layers are replaced by this package's (same module names, a cheaper mask on CPUs). A pooler is kept, because
    checkpoints store it, but frozen: no gradient ever reaches it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = config = model.config
        self.model: PreTrainedModel = model
        self.packed, self.packed_reason = packed_reason(config)
        self.capturable = self.packed and config.model_type in BERT_MODELS
        self.hidden_size = int(config.hidden_size)
        self.max_length = max_length(config)
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
        self._pass = _PASSES.get(config.model_type) if self.packed else None
        if self._pass is bert_forward:
            self._pass = functools.partial(bert_forward, chained=Chained(bert_chain))
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
        """input_ids int64 [N], rows int64 [r] or None (all N) -> hidden [r, hidden_size]."""
        if input_ids.numel() == 0:
            return next(self.model.parameters()).new_empty(0, self.hidden_size)
        if self._pass is not None:
            return self._pass(self.model, input_ids, self._positions(packing), packing, rows)
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
        groups = group_texts(packing, padding=self._takes_mask)
        padding = self.config.pad_token_id
        outs = []
        for group in groups.groups:
            shape = group.texts, group.length
            ids = input_ids[group.rows].view(shape)
            inputs: dict[str, Tensor] = {}
            if self._takes_mask:
                inputs["attention_mask"] = torch.ones_like(ids)
            if group.unseen is not None:
                unseen = group.unseen.view(shape)
                ids = ids.masked_fill(unseen, 0 if padding is None else padding)
                inputs["attention_mask"] = (~unseen).long()
            outs.append(self.model(input_ids=ids, **inputs).last_hidden_state.flatten(0, 1))
        hidden = torch.cat(outs)
        return hidden if groups.order is None else hidden.index_select(0, groups.order)

    def pack(self, dtype: str) -> bool:
        if not self.packed and self.config.model_type not in _PADDED_THAT_PACK:  # others may read a layer's weight
            return False
        pack_layers(self.model.get_submodule(_LAYERS.get(self.config.model_type, "encoder")), dtype)
        project = getattr(self.model, "embeddings_project", None)  # of ELECTRA, before the layers
        if isinstance(project, nn.Linear):
            exact = "fp32" if dtype == "int8" else dtype
            self.model.embeddings_project = packed_linear(project, exact)
        return True

    def resize_token_embeddings(self, size: int) -> None:
        """Make the vocabulary `size` tokens; new rows are drawn as the model draws its weights at the start."""
        self._check_size(size)
        self.model.resize_token_embeddings(size, mean_resizing=False)
