"""LowRank: an update B A of a packed weight, which stays as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ._linear_packed import PackedWeight, pair_rows


class LowRank(NamedTuple):
    """The factors of an update for `linear_packed`: y = act(x W^T + bias + (x A^T) B^T) (LoRA, without merging).

    down: A [r, inputs], packed. up: B [columns of W, r], packed in fp32, its rows in the order of W's products.

    The update costs r (inputs + outputs) multiply-adds a row, W inputs * outputs. W may be packed in any dtype, and be
    shared by any number of updates: https://arxiv.org/abs/2106.09685.
    """

    down: PackedWeight
    up: PackedWeight

    @classmethod
    def pack(cls, packed: PackedWeight, a: Tensor, b: Tensor, dtype: str) -> LowRank:
        """Pack A [r, inputs] and B [outputs of the weight, r] for a packed weight. dtype: of A, "fp32" or "bf16".

        Raises ValueError for other shapes.
        """
        outputs = packed.outputs * (2 if packed.gated else 1)
        if a.ndim != 2 or a.shape[1] != packed.inputs or not len(a):
            raise ValueError(f"a: expected [rank, {packed.inputs}], got {tuple(a.shape)}")
        if b.shape != (outputs, len(a)):
            raise ValueError(f"b: expected {(outputs, len(a))}, got {tuple(b.shape)}")
        rows = pair_rows(b) if packed.gated else F.pad(b, (0, 0, 0, packed.columns - outputs))
        return cls(PackedWeight.pack(a, None, dtype), PackedWeight.pack(rows, None, "fp32"))

    def check_layout(self, packed: PackedWeight) -> None:
        """Raise ValueError unless the update was packed for weights like this one."""
        if (self.down.inputs, self.up.columns) != (packed.inputs, packed.columns):
            raise ValueError(
                f"low_rank: expected an update of {packed.inputs} inputs and {packed.columns} columns, got "
                f"{self.down.inputs} and {self.up.columns}; pack it for this weight"
            )
