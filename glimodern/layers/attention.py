"""Bidirectional attention over packed texts: `ops.attention_varlen` with a `Packing`, as encoders call it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from glimodern.ops import RelativePositions, attention_varlen
from glimodern.ops.dispatch import takes_flash

from .relative_attention import Groups, group_texts, grouped_attention

__all__ = ["Packing", "packed_attention", "takes_flash"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Text boundaries of a packed batch. Values that every layer needs are computed once.

    cu_seqlens: int32 [texts + 1], the tensor that kernels read. max_seqlen: tokens of the longest text. tokens: tokens
    of all texts. offsets: cu_seqlens as host integers; None in a CUDA graph, which serves batches with any text lengths
    (`glimodern.network.cuda_graphs`).
    """

    cu_seqlens: Tensor
    max_seqlen: int
    tokens: int
    offsets: tuple[int, ...] | None = None

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, tokens: int, offsets: tuple[int, ...] | None = None) -> Packing:
        """Check cu_seqlens against the number of tokens, and the longest text against max_seqlen.

        offsets: cu_seqlens on the host. Without it cu_seqlens is read, the one host synchronisation of a forward pass.
        On the CPU cu_seqlens is always read, as the kernels read memory by it unchecked.

        Raises ValueError for offsets that do not rise from 0 to `tokens` by at most max_seqlen.
        """
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() == 0:
            raise ValueError(
                f"cu_seqlens: expected int32 [texts + 1], 0 and the end of every text, got {cu_seqlens.dtype} "
                f"{list(cu_seqlens.shape)}"
            )
        if offsets is not None and len(offsets) != len(cu_seqlens):
            raise ValueError(f"offsets: expected the {len(cu_seqlens)} elements of cu_seqlens, got {len(offsets)}")
        if offsets is None or cu_seqlens.device.type == "cpu":
            given, offsets = offsets, tuple(cu_seqlens.tolist())
            if given is not None and given != offsets:
                raise ValueError("offsets: expected the elements of cu_seqlens, got other ones")
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
        if offsets[0] != 0 or offsets[-1] != tokens or min(lengths, default=0) < 0:
            raise ValueError(
                f"cu_seqlens: expected offsets that rise from 0 to the number of tokens, {tokens}, got {offsets[0]} to "
                f"{offsets[-1]}" + (", falling in between" if min(lengths, default=0) < 0 else "")
            )
        longest = max(lengths, default=0)
        if longest > max_seqlen:
            raise ValueError(
                f"max_seqlen: expected at least {longest}, the longest text of cu_seqlens, got {max_seqlen}"
            )
        return cls(cu_seqlens, max_seqlen, tokens, offsets)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text. Raises RuntimeError if the offsets are not known on the host."""
        if self.offsets is None:
            raise RuntimeError("lengths: the text lengths of a batch in a CUDA graph are known on the device only")
        return [end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False)]

    @cached_property
    def groups(self) -> Groups:
        """The texts in groups of similar length, for steps that need them padded."""
        return group_texts(self)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        scale: float | None,
        dropout_p: float,
        positions: RelativePositions | None,
    ) -> Tensor:
        """Compute `packed_attention`."""
        if positions is not None and window is None and q.device.type != "cpu":  # the kernels there take no positions
            return self._grouped(q, k, v, positions, scale, dropout_p)
        seed = int(torch.randint(2**62, ())) if dropout_p > 0.0 else 0
        return attention_varlen(
            q, k, v, self.cu_seqlens, self.max_seqlen, window=window, scale=scale, dropout_p=dropout_p, seed=seed,
            offsets=self.offsets, check_offsets=len(q) != self.tokens, positions=positions,
        )  # fmt: skip

    def _grouped(
        self, q: Tensor, k: Tensor, v: Tensor, positions: RelativePositions, scale: float | None, dropout_p: float
    ) -> Tensor:
        scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
        return grouped_attention(q, k, v, self.groups, positions, scale=scale, dropout_p=dropout_p)

    @cached_property
    def position_ids(self) -> Tensor:
        """Position of each token in its text, from 0; int64 [N]."""
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
    positions: RelativePositions | None = None,
) -> Tensor:
    """Compute softmax(scale * q k^T) v inside each text: q, k, v [N, heads, head_dim] -> [N, heads, head_dim].

    window: attend to keys with |i - j| <= window only; None: to all keys. scale: default 1 / sqrt(head_dim).
    dropout_p: probability of dropping an attention probability, with a seed drawn from torch's CPU generator; pass 0
    outside training. positions: terms of the scores that depend on the distance i - j, as in `ops.attention_varlen`;
    their rows must be in range, which is not checked again. On the CPU they are part of the kernels; elsewhere texts
    are computed in groups of similar length, with masks that torch's generator of the device draws.
    """
    return packing.attention(q, k, v, window=window, scale=scale, dropout_p=dropout_p, positions=positions)
