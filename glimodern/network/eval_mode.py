"""Evaluation of a model in training mode: a replica in eval mode that shares its parameters.

Switching a live model to eval mode and back would affect every other thread that uses it, and would lose which
submodules the user had set to eval mode. A replica is a second tree of modules with the same parameters, buffers and
hooks, made like `torch.nn.parallel.replicate`. The model itself does not change.
"""

from __future__ import annotations

from types import MethodType
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def in_eval_mode(module: nn.Module) -> bool:
    """Whether a module and all of its submodules are in eval mode."""
    pending = [module]
    while pending:
        current = pending.pop()
        if current.training:
            return False
        pending.extend(child for child in current._modules.values() if child is not None)
    return True


def eval_replica(module: M) -> M:
    """Build a replica of a module in eval mode, on the same tensors. Takes some microseconds per submodule.

    Modules compiled by torch.compile run uncompiled. Raises ValueError for modules that cannot be replicated.
    """
    replica: M = _replica(module, {})  # type: ignore[assignment]
    return replica


def _replica(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    compiled_from = module._modules.get("_orig_mod")
    if compiled_from is not None and type(module).__name__ == "OptimizedModule":
        replica = done[module] = _replica(compiled_from, done)
        return replica
    forward = vars(module).get("forward")
    bound_forward = forward if isinstance(forward, MethodType) and forward.__self__ is module else None
    if isinstance(module, torch.jit.ScriptModule) or forward is not bound_forward:
        raise ValueError(
            f"model: expected modules in eval mode, got {type(module).__name__} in training mode with a forward that "
            "is not its class's own, which cannot be replicated; call model.eval() before predicting"
        )
    replica = done[module] = object.__new__(type(module))
    state = vars(module).copy()
    for name, value in state.items():
        if name.endswith("_hooks"):
            state[name] = value.copy()  # so that hooks on the replica are not hooks on the module
    state["training"] = False
    state["_compiled_call_impl"] = None
    if bound_forward is not None:
        state["forward"] = MethodType(bound_forward.__func__, replica)
    vars(replica).update(state)
    vars(replica)["_modules"] = {
        name: None if child is None else _replica(child, done) for name, child in module._modules.items()
    }
    return replica
