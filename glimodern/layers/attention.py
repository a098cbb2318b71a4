"""Bidirectional attention over packed texts, as the encoders call it: `ops.attention_varlen` on a `Packing`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from glimodern.ops import attention_varlen
from glimodern.ops._attention_varlen import takes_flash

__all__ = ["Packing", "packed_attention", "takes_flash"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the texts of a packed batch lie, with what every layer asks about it computed once.

    cu_seqlens int32 [b + 1] (the tensor, for kernels), max_seqlen the longest text's tokens, tokens of all texts;
    offsets: cu_seqlens on the host, None in a graph that serves any texts (`glimodern.network.cuda_graphs`).
    """

    cu_seqlens: Tensor
    max_seqlen: int
    tokens: int
    offsets: tuple[int, ...] | None = None

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, tokens: int, offsets: tuple[int, ...] | None = None) -> Packing:
        """Check cu_seqlens against the number of tokens; unless offsets tell what it holds, it is read, the one host
        synchronisation of a forward pass."""
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() == 0:
            raise ValueError(
                f"cu_seqlens must be int32 [texts + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}; "
                "it holds 0 and the end of every text"
            )
        if offsets is None:
            offsets = tuple(cu_seqlens.tolist())
        elif len(offsets) != len(cu_seqlens):
            raise ValueError(f"offsets must be cu_seqlens on the host: {len(cu_seqlens)} numbers, got {len(offsets)}")
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
        if offsets[0] != 0 or offsets[-1] != tokens or min(lengths, default=0) < 0:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the number of tokens ({tokens}), got {offsets[0]} to {offsets[-1]}"
                + (", falling in between" if min(lengths, default=0) < 0 else "")
            )
        if max(lengths, default=0) > max_seqlen:
            raise ValueError(f"max_seqlen is {max_seqlen}, but the longest text of cu_seqlens has {max(lengths)}")
        return cls(cu_seqlens, max_seqlen, tokens, offsets)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, which must be known on the host."""
        if self.offsets is None:
            raise RuntimeError("the texts of a captured batch are known on the device only")
        return [end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False)]

    @cached_property
    def position_ids(self) -> Tensor:
        """int64 [N]: each token's place in its text, from 0."""
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens.diff().long()
        firsts = torch.repeat_interleave(starts, lengths, output_size=self.tokens)
        return torch.arange(self.tokens, device=self.cu_seqlens.device) - firsts


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T) v inside each text: q, k, v [N, heads, head_dim] -> [N, heads, head_dim].

    window: keys with |i - j| <= window are seen (None: all); scale: 1 / sqrt(head_dim) unless given;
    dropout_p: share of probabilities dropped (give 0 outside training), by a seed drawn from torch's CPU generator.
    """
    seed = int(torch.randint(2**62, ())) if dropout_p > 0.0 else 0
    return attention_varlen(
        q, k, v, packing.cu_seqlens, packing.max_seqlen, window=window, scale=scale, dropout_p=dropout_p, seed=seed,
        offsets=packing.offsets,
    )  # fmt: skip
