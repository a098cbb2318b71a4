"""What every encoder is: packed token ids in, packed hidden states out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glimodern.layers.attention import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Encoder(nn.Module):
    """Packed token ids in, packed hidden states out; subclasses fill in the attributes and `encode`.

    config: transformers' config of the model.
    model: the module that owns the parameters, so that state dict keys are `model.<transformers' names>`.
    packed, packed_reason: whether the model itself runs without padding, and why (not), in words.
    capturable: whether `encode` takes a Packing without offsets, asks nothing of the device and, but for attention,
    launches the same kernels whatever the texts, so that a CUDA graph can record it.
    hidden_size: width of the hidden states; max_length: tokens of one text that positions allow (None: no limit).
    """

    config: PreTrainedConfig
    model: nn.Module
    packed: bool
    packed_reason: str
    capturable: bool = False
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
        """input_ids int64 [N], cu_seqlens int32 [texts + 1], max_seqlen tokens -> hidden [N, hidden_size].

        rows int64 [r]: the hidden states of these tokens only, in this order, [r, hidden_size] (an encoder of our own
        spares the others the end of its last layer). offsets: cu_seqlens on the host; None: it is read, which waits
        for the device.

        Raises ValueError for input of another shape or dtype, and for a text longer than `max_length`.
        """
        if input_ids.ndim != 1 or input_ids.dtype != torch.int64:
            raise ValueError(
                f"input_ids must be int64 [tokens of all texts], got {input_ids.dtype} {list(input_ids.shape)}; "
                "concatenate the texts and give their ends as cu_seqlens"
            )
        packing = Packing.of(cu_seqlens, max_seqlen, input_ids.numel(), offsets)
        longest = max(packing.lengths, default=0)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"a text has {longest} tokens, but this encoder's positions end at {self.max_length}; "
                "cut or split the text"
            )
        return self.encode(input_ids, packing, rows)

    def encode(self, input_ids: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
        """`forward` on checked input."""
        raise NotImplementedError

    def resize_token_embeddings(self, size: int) -> None:
        """Make the vocabulary `size` tokens; rows kept keep their values, new rows start as the config's weights do.

        (That is normal, or truncated normal for ModernBERT, with the config's initializer_range; transformers'
        default, draws around the mean of the old rows, is not used.)
        """
        raise NotImplementedError

    def pack(self, dtype: str) -> bool:
        """Pack the linear layers for inference (`PackedLinear`, dtype "fp32", "bf16" or "int8"), if that is known to be
        right for this architecture; returns whether."""
        return False

    def _check_size(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"size must be a positive number of tokens, got {size}")
