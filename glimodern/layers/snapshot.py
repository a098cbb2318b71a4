"""What a model was made of when its work was written down: as a CUDA graph, or as a chain of operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Snapshot:
    """Some modules with their parameters and buffers as they are, kept alive, to tell later whether they still are."""

    def __init__(self, *roots: nn.Module) -> None:
        self.modules = [module for root in roots for module in root.modules()]
        self.tables: list[dict[str, Any]] = [
            table for m in self.modules for table in (m._parameters, m._buffers, m._modules) if table
        ]
        self.values = [value for table in self.tables for value in table.values()]  # held, so that ids stay theirs
        self.hooks = [hooks for m in self.modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.memory = [x.detach() for x in self.tensors]  # held, whatever becomes of the parameters' own
        self.state = self._state()

    def _state(self) -> list[list[int]]:
        return [
            [id(value) for table in self.tables for value in table.values()],
            [x.data_ptr() for x in self.tensors],
            [m.training for m in self.modules],
            [any(self.hooks)],
        ]

    def unchanged(self) -> bool:
        """Whether the model still reads the same memory by the same modules, in the same modes, as free of hooks."""
        return self._state() == self.state

    def problem(self) -> str:
        """Why what the modules do cannot be replayed; empty if it can."""
        if any(self.hooks):
            return "modules have forward hooks, which a replay would not call"
        return "dropout is on" if any(isinstance(m, nn.Dropout) and m.training for m in self.modules) else ""
