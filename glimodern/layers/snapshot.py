"""Detecting changes of a model that a CUDA graph, a chain of operators or a copy of its weights was derived from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from .packed_linear import PackedLinear


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


class HasModules(Protocol):
    """A module, or any object with a module's `modules` method."""

    def modules(self) -> Iterator[nn.Module]: ...


class Snapshot:
    """The state of the modules under some roots, to compare with later. Modules and tensors are kept alive.

    values: also detect values that are written in place, which matters to copies of the weights.
    """

    def __init__(self, *roots: HasModules, values: bool = False) -> None:
        self.modules = [module for root in roots for module in root.modules()]
        self.tables: list[dict[str, Any]] = [
            table for m in self.modules for table in (m._parameters, m._buffers, m._modules) if table
        ]
        self.values = [value for table in self.tables for value in table.values()]  # kept alive: ids are not reused
        self.hooks = [hooks for m in self.modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.packed = [m for m in self.modules if isinstance(m, PackedLinear)]
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.memory = [x.detach() for x in self.tensors]  # kept alive: addresses are not reused
        # Inference tensors have no version counter.
        self.versions = [x for x in self.tensors if values and not x.is_inference()]
        self.state = self._state()

    def _state(self) -> list[list[Any]]:
        return [
            [id(value) for table in self.tables for value in table.values()],
            [_address(x) for x in self.tensors],
            # sharing a model with other processes moves its packed weights
            [
                (id(w), w.panels.data_ptr(), w.bias.data_ptr())
                for m in self.packed
                for w in (m.packed, *(m.low_rank or ()))
            ],
            [m.training for m in self.modules],
            [any(self.hooks)],
            [x._version for x in self.versions],
        ]

    def unchanged(self) -> bool:
        """Whether modules, memory, training modes and the presence of hooks are the same as at construction."""
        return self._state() == self.state

    def problem(self) -> str:
        """Reason why the work of the modules cannot be replayed; empty if it can."""
        if any(self.hooks):
            return "modules have forward hooks, which a replay would not call"
        return "dropout is on" if any(isinstance(m, nn.Dropout) and m.training for m in self.modules) else ""
