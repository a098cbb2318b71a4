"""An encoder's layers as one chain of operators (`ops.Chain`), where inference on a CPU allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glimodern.ops import Chain

from .snapshot import Snapshot

Build = Callable[[Any, torch.dtype], "tuple[Chain, Sequence[nn.Module]] | None"]


class _Built(NamedTuple):
    dtype: torch.dtype
    snapshot: Snapshot
    chain: Chain | None


class Chained:
    """A model's chain, made at the first pass that can take it, and anew once its modules changed. A copy makes one.

    build(model, dtype): the chain and the modules that it stands for, or None where they cannot be one.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._built: _Built | None = None

    def of(self, model: nn.Module, x: Tensor) -> Chain | None:
        """The chain for the hidden states x; None: run the modules themselves."""
        if model.training or not len(x) or Chain.problem(x):
            return None
        built = self._built
        if built is None or built.dtype != x.dtype or not built.snapshot.unchanged():
            made = self.build(model, x.dtype)
            chain, modules = (None, [model]) if made is None else made
            snapshot = Snapshot(*modules)
            built = self._built = _Built(x.dtype, snapshot, None if snapshot.problem() else chain)
        return built.chain

    def __getstate__(self) -> dict[str, Any]:
        return {"build": self.build, "_built": None}
