"""Token embeddings in int8 for inference, which replace a model's `nn.Embedding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glimodern.ops import QuantisedWeight
from glimodern.runtime.ambient import lasting

from .quantised import quantised_weight, save_quantised


class PackedEmbedding(nn.Module):
    """A table of embeddings [rows, width] in int8 with one scale a row, without parameters.

    embedding: its weight is quantised, largest |element| of a row to 127, or taken as it is if `hold_quantised`
    prepared it. The result has the dtype that the module was last moved to, fp32 at first; the state dict is the stored
    form of `glimodern.checkpoint.quantised`.
    """

    @lasting()
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        stored = quantised_weight(embedding)
        self.table = _quantised_rows(embedding.weight.detach().float()) if stored is None else stored
        self.table.check()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows: int64 [...] -> [..., width]."""
        rows = nn.functional.embedding(ids, self.table.weight)
        return (rows * nn.functional.embedding(ids, self.table.scale[:, None])).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, int8"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedEmbedding:
        # .to(device) moves the table. .to(dtype) changes the result's dtype, not the scales.
        target = fn(torch.empty(0, dtype=self.dtype, device=self.table.weight.device))
        weight, scale, _ = self.table
        self.table = QuantisedWeight(weight.to(target.device), scale.to(target.device), None)
        self.dtype = target.dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        save_quantised(destination, prefix, self.table)


def _quantised_rows(weight: Tensor) -> QuantisedWeight:
    scale = weight.abs().amax(1) / 127.0
    scale = torch.where(scale > 0.0, scale, 1.0)
    return QuantisedWeight(torch.round(weight / scale[:, None]).to(torch.int8), scale, None)


def packed_embedding(embedding: nn.Module, dtype: str) -> nn.Module:
    """Pack a table of token embeddings if dtype is "int8"; else return it, as also a module that is not a table."""
    return PackedEmbedding(embedding) if dtype == "int8" and type(embedding) is nn.Embedding else embedding
