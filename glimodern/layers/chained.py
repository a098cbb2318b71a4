"""A cached chain of operators (`ops.Chain`) for an encoder's layers in inference on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glimodern.ops import Chain

from .snapshot import Snapshot

Build = Callable[[Any, torch.dtype], "Chain | None"]


class _Built(NamedTuple):
    """A chain with what it was built from: the dtype, and the modules that it replaces."""

    dtype: torch.dtype
    modules: tuple[nn.Module, ...]
    snapshot: Snapshot
    chain: Chain | None


class Chained:
    """The chain of a model, built by the first forward pass that can use it and rebuilt when the modules change.

    Parameters that are written in place count as a change too, since tables of positions are computed when the chain is
    built.

    build: (model, dtype) -> chain, or None if the model's modules cannot run as a chain. Copies of the model rebuild
    the chain on first use.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._built: _Built | None = None

    def of(self, model: nn.Module, x: Tensor, *modules: nn.Module) -> Chain | None:
        """Return the chain to run on the hidden states x instead of `modules`; None if the modules must run."""
        if model.training or not len(x) or Chain.problem(x):
            self._built = None
            return None
        built = self._built
        if (
            built is None
            or built.dtype != x.dtype
            or not all(a is b for a, b in zip(built.modules, modules, strict=True))
            or not built.snapshot.unchanged()
        ):
            chain = self.build(model, x.dtype)
            if chain is None:
                self._built = None
                return None
            snapshot = Snapshot(*modules, values=True)
            chain = None if snapshot.problem() else chain
            built = self._built = _Built(x.dtype, modules, snapshot, chain)
        return built.chain

    def __getstate__(self) -> dict[str, Any]:
        return {"build": self.build, "_built": None}
