"""An encoder's layers as one chain of operators (`ops.Chain`), where inference on a CPU allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glimodern.ops import Chain

from .snapshot import Snapshot

Build = Callable[[Any, torch.dtype], "Chain | None"]


class _Built(NamedTuple):
    dtype: torch.dtype
    parts: tuple[nn.Module, ...]
    snapshot: Snapshot
    chain: Chain | None


class Chained:
    """A model's chain, made at the first pass that can take it, and anew once its modules changed.
    Copies of the model rebuild it on first use.

    build(model, dtype): the chain, or None where the model's modules cannot be one.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._built: _Built | None = None

    def of(self, model: nn.Module, x: Tensor, *parts: nn.Module) -> Chain | None:
        """The chain for the hidden states x, in the place of `parts`; None: run these modules themselves."""
        if model.training or not len(x) or Chain.problem(x):
            self._built = None
            return None
        built = self._built
        if (
            built is None
            or built.dtype != x.dtype
            or not all(a is b for a, b in zip(built.parts, parts, strict=True))
            or not built.snapshot.unchanged()
        ):
            chain = self.build(model, x.dtype)
            if chain is None:
                self._built = None
                return None
            snapshot = Snapshot(*parts)
            chain = None if snapshot.problem() else chain
            built = self._built = _Built(x.dtype, parts, snapshot, chain)
        return built.chain

    def __getstate__(self) -> dict[str, Any]:
        return {"build": self.build, "_built": None}
