"""A packing whose texts are padded for attention, in operations that a tracer records for texts of any lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from glimodern.ops import RelativePositions

from .attention import Packing
from .relative_attention import Group, Groups


@dataclass(frozen=True, eq=False)
class PaddedTexts:
    """Rows of texts, packed [rows] and padded [texts, longest].

    inside: bool [texts, longest], False for padding. packed: int64 [rows], each row's place in the flattened padded
    form. padded: int64 [texts, longest], the row at each place; any row where there is padding.
    """

    inside: Tensor
    packed: Tensor
    padded: Tensor

    @classmethod
    def of(cls, inside: Tensor) -> PaddedTexts:
        """Number the rows that a mask, bool [texts, longest], has inside, text by text."""
        flat = inside.flatten()
        padded = (flat.long().cumsum(0) - 1).clamp(min=0).view(inside.shape)
        return cls(inside, flat.nonzero().squeeze(1), padded)

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> PaddedTexts:
        """Number the rows of texts with these lengths, int64 [texts]."""
        longest: Any = lengths.max()  # stays a tensor, so that a tracer does not take it for a constant
        return cls.of(torch.arange(longest, device=lengths.device)[None] < lengths[:, None])

    def pad(self, rows: Tensor) -> Tensor:
        """Return packed rows [rows, d] in the padded form [texts, longest, d]; padding holds any row."""
        texts, longest = self.padded.shape
        return rows.index_select(0, self.padded.flatten()).view(texts, longest, rows.shape[-1])

    def pack(self, padded: Tensor) -> Tensor:
        """Return the rows inside of a padded form [texts, longest, ...]: [rows, ...]."""
        return padded.flatten(0, 1).index_select(0, self.packed)


class PaddedPacking(Packing):
    """A packing that computes attention on padded texts, and reads no length on the host.

    cu_seqlens: int32 [texts + 1]. texts: their tokens.
    """

    texts: PaddedTexts

    def __init__(self, texts: PaddedTexts) -> None:
        lengths = texts.inside.long().sum(1)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        super().__init__(cu_seqlens, texts.inside.shape[1], texts.packed.shape[0])
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "_biases", {})

    @cached_property
    def position_ids(self) -> Tensor:
        """Position of each token in its text, from 0; int64 [N]."""
        return self.texts.pack(self.texts.inside.long().cumsum(1) - 1)

    @property
    def lengths(self) -> list[int]:
        # Asked only for an encoder whose texts must have equal lengths.
        raise ValueError("encoder: expected one that takes an attention mask, to compute padded texts, got none")

    @cached_property
    def groups(self) -> Groups:
        """All texts in one group."""
        count, longest = self.texts.padded.shape
        outside = ~self.texts.inside[None, :, None]
        return Groups((Group(count, longest, self.texts.padded.flatten(), outside),), self.texts.packed)

    def _bias(self, window: int | None) -> Tensor:
        """Return 0 for the keys that a query sees, else the least number: fp32 [texts, 1, 1 or L, L]."""
        biases: dict[int | None, Tensor] = vars(self)["_biases"]
        if window not in biases:
            seen = self.texts.inside[:, None, None]
            if window is not None:
                place = torch.arange(self.texts.inside.shape[1], device=seen.device)
                seen = seen & ((place[:, None] - place[None, :]).abs() <= window)
            biases[window] = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return biases[window]

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
        """Compute `packed_attention`, without dropout, and without a window where there are positions."""
        if positions is not None:
            if window is not None:
                raise ValueError(f"window: expected None with positions on padded texts, got {window}")
            return self._grouped(q, k, v, positions, scale, 0.0)
        heads, dim = q.shape[1:]
        scale = 1.0 / math.sqrt(dim) if scale is None else scale
        shape = (*self.texts.padded.shape, heads, dim)
        q, k, v = (self.texts.pad(x.flatten(1)).view(shape).transpose(1, 2) for x in (q, k, v))
        scores = (q * scale) @ k.transpose(-1, -2) + self._bias(window)
        out = torch.softmax(scores, -1) @ v
        return self.texts.pack(out.transpose(1, 2))
