"""Any encoder that transformers loads, on packed texts; the one place of this package that pads.

A model whose only contact between tokens is attention, and whose positions can be given, runs packed: one row of N
tokens, each text's positions counted from 0. BERT and its kin take our own pass through their layers (`bert`); others
run as they are, with attention registered with transformers under `PACKED` so that every query stays in its text.
`PACKED_MODELS` names the architectures for which that is tested; all others are padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attention import Packing, packed_attention
from .base import Encoder
from .bert import BERT_MODELS, bert_forward, pack_bert
from .dropout import Dropout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = "glimodern_packed"


# model_type of architectures that run packed, each proved equal to its own padded run by tests/test_encoder.py.
PACKED_MODELS = (*BERT_MODELS, "albert", "distilbert", "nomic_bert", "xlm-roberta-xl")
# Their positions count from pad_token_id + 1, packed or padded.
_POSITIONS_AFTER_PADDING = ("camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


def first_position(config: PreTrainedConfig) -> int:
    """The position number of a text's first token: 0, but RoBERTa and its kin count from pad_token_id + 1."""
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return int(config.pad_token_id) + 1
    return 0


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
        return False, f"padded: {kind} is not among the architectures that run packed ({', '.join(PACKED_MODELS)})"
    if getattr(config, "is_decoder", False):
        return False, f"padded: this {kind} is configured as a decoder (is_decoder), whose attention is causal"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return False, f"padded: position_embedding_type {config.position_embedding_type!r} is not absolute"
    return True, f"packed: {kind} takes position_ids, and its attention is ours"


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
        if self.packed and config.model_type not in BERT_MODELS:
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
        if self.capturable:
            return bert_forward(self.model, input_ids, self._positions(packing), packing, rows)
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
        texts, longest = len(packing.lengths), max(packing.lengths)
        text_of_token = torch.repeat_interleave(
            torch.arange(texts, device=input_ids.device), packing.cu_seqlens.diff().long(), output_size=len(input_ids)
        )
        place = text_of_token * longest + packing.position_ids
        padding = self.config.pad_token_id
        padded = input_ids.new_full((texts * longest,), 0 if padding is None else padding)
        mask = torch.zeros_like(padded)
        padded[place] = input_ids
        mask[place] = 1
        output = self.model(input_ids=padded.view(texts, longest), attention_mask=mask.view(texts, longest))
        hidden: Tensor = output.last_hidden_state.flatten(0, 1)[place]
        return hidden

    def pack(self, dtype: str) -> bool:
        if self.config.model_type not in BERT_MODELS:  # others may read their layers' weights
            return False
        pack_bert(self.model, dtype)
        return True

    def resize_token_embeddings(self, size: int) -> None:
        """Make the vocabulary `size` tokens; new rows are drawn as the model draws its weights at the start."""
        self._check_size(size)
        self.model.resize_token_embeddings(size, mean_resizing=False)
