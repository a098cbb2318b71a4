"""A copy of modules on the same tensors, in which some of them can be replaced."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from glimodern.layers.packed_linear import PackedLinear

M = TypeVar("M", bound=nn.Module)


def shared_copy(module: M, *others: Any) -> M:
    """Copy a tree of modules. Parameters, buffers and packed weights of the copy are those of the original.

    others: more objects that the copy shares. The copy has hooks, modes and caches of its own: chains of operators are
    built anew on first use.
    """
    shared: list[Any] = [*module.parameters(), *module.buffers(), *others]
    for packed in (child for child in module.modules() if isinstance(child, PackedLinear)):
        shared += [packed.packed, *(packed.low_rank or ())]
    return copy.deepcopy(module, {id(value): value for value in shared})


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in place of another one, wherever that stands under the root."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
