"""The base class of encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glimodern.layers.attention import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Encoder(nn.Module):
    """Base class: packed token ids in, packed hidden states out. Subclasses set the attributes and define `encode`.

    config: the model's transformers config. Reading it imports transformers.
    model_type: transformers' name of the architecture.
    model: the module that owns the parameters, so that state dict keys are `model.<transformers' names>`.
    packed, packed_reason: whether the model runs without padding, and the reason as text.
    capturable: whether a CUDA graph can record `encode`. It can if `encode` accepts a Packing without offsets, reads
    nothing back from the device and, except for attention, launches the same kernels for all texts.
    heads: attention heads of a layer, if capturable.
    hidden_size: width of the hidden states.
    max_length: maximum tokens of one text that the positions allow; None: no limit.
    """

    config: PreTrainedConfig
    model_type: str
    model: nn.Module
    packed: bool
    packed_reason: str
    capturable: bool = False
    heads: int = 0
    hidden_size: int
    max_length: int | None

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rows: Tensor | None = None,
        offsets: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Encode packed tokens. Returns hidden states [N, hidden_size], or [r, hidden_size] with `rows`.

        input_ids: int64 [N]. cu_seqlens: int32 [texts + 1]. max_seqlen: tokens of the longest text, or more.
        rows: int64 [r]; return the hidden states of these tokens only, in this order. This package's own forward passes
        then skip the part of the last layer after attention for all other tokens.
        offsets: cu_seqlens as host integers; None: cu_seqlens is read, which synchronises with the device.

        Raises ValueError for input of another shape or dtype, and for a text longer than `max_length`.
        """
        if input_ids.ndim != 1 or input_ids.dtype != torch.int64:
            raise ValueError(
                f"input_ids: expected int64 [tokens of all texts], got {input_ids.dtype} {list(input_ids.shape)}; "
                "concatenate the texts and give their ends as cu_seqlens"
            )
        packing = Packing.of(cu_seqlens, max_seqlen, input_ids.numel(), offsets)
        longest = max(packing.lengths, default=0)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"input_ids: expected at most {self.max_length} tokens a text, where this encoder's positions end, got "
                f"{longest}; cut or split the text"
            )
        return self.encode(input_ids, packing, rows)

    def encode(self, input_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
        """Compute `forward` without checking the input."""
        raise NotImplementedError

    def resize_token_embeddings(self, size: int) -> None:
        """Resize the vocabulary to `size` tokens. Kept rows keep their values.

        New rows are drawn like the initial weights: normal, or truncated normal for ModernBERT, with the config's
        initializer_range. transformers' default (draws around the mean of the old rows) is not used.
        """
        raise NotImplementedError

    def pack(self, dtype: str) -> bool:
        """Pack the linear layers for inference (`PackedLinear`, dtype "fp32", "bf16" or "int8").

        In int8, the token embeddings are packed too (`PackedEmbedding`).

        Returns False, and packs nothing, if packing is not known to be correct for this architecture.
        """
        return False

    def _check_size(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"size: expected a positive number of tokens, got {size}")
