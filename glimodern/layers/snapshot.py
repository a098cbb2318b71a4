"""What a model was made of when work was derived from it: a CUDA graph, a chain of operators, a copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from .packed_linear import PackedLinear


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


class HasModules(Protocol):
    """A module, or what stands for one."""

    def modules(self) -> Iterator[nn.Module]: ...


class Snapshot:
    """The modules under some roots, with their tensors as they are, kept alive; tells later whether they still are.

    values: also notice values that were written in place, for whoever copied them.
    """

    def __init__(self, *roots: HasModules, values: bool = False) -> None:
        self.modules = [module for root in roots for module in root.modules()]
        self.tables: list[dict[str, Any]] = [
            table for m in self.modules for table in (m._parameters, m._buffers, m._modules) if table
        ]
        self.values = [value for table in self.tables for value in table.values()]  # held, so that ids stay theirs
        self.hooks = [hooks for m in self.modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.packed = [m for m in self.modules if isinstance(m, PackedLinear)]
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.memory = [x.detach() for x in self.tensors]  # held, whatever becomes of the parameters' own
        self.versions = [
            x for x in self.tensors if values and not x.is_inference()
        ]  # inference tensors count no writes
        self.state = self._state()

    def _state(self) -> list[list[Any]]:
        return [
            [id(value) for table in self.tables for value in table.values()],
            [_address(x) for x in self.tensors],
            # a process that shares a model with others moves packed weights
            [(id(m.packed), m.packed.panels.data_ptr(), m.packed.bias.data_ptr()) for m in self.packed],
            [m.training for m in self.modules],
            [any(self.hooks)],
            [x._version for x in self.versions],
        ]

    def unchanged(self) -> bool:
        """Whether the model still reads the same memory by the same modules, in the same modes, as free of hooks."""
        return self._state() == self.state

    def problem(self) -> str:
        """Why what the modules do cannot be replayed; empty if it can."""
        if any(self.hooks):
            return "modules have forward hooks, which a replay would not call"
        return "dropout is on" if any(isinstance(m, nn.Dropout) and m.training for m in self.modules) else ""
