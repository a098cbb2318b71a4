"""Evaluation beside training: a replica of a module in eval mode, on the same parameters.

Switching a live model to eval and back would be seen by every other thread that uses it, and would forget which
submodules their owner had set to eval by hand. A replica is a second tree of the same modules over the same parameters,
buffers and hooks (the way of `torch.nn.parallel.replicate`), so nothing of the model changes.
"""

from __future__ import annotations

from types import MethodType
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def in_eval_mode(module: nn.Module) -> bool:
    """Whether a module and all of its submodules are."""
    modules = [module]
    while modules:
        one = modules.pop()
        if one.training:
            return False
        modules.extend(child for child in one._modules.values() if child is not None)
    return True


def eval_replica(module: M) -> M:
    """The module in eval mode, in new module objects over the same tensors; some microseconds a submodule.

    What is compiled (torch.compile) runs as it was written. Raises ValueError for modules that cannot be replicated.
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
    own = forward if isinstance(forward, MethodType) and forward.__self__ is module else None
    if isinstance(module, torch.jit.ScriptModule) or forward is not own:
        raise ValueError(
            f"model: expected modules in eval mode, {type(module).__name__} is in training mode and its forward is not "
            "its class's own, so it cannot be computed beside; call model.eval() before predicting"
        )
    replica = done[module] = object.__new__(type(module))
    state = vars(module).copy()
    for name, value in state.items():
        if name.endswith("_hooks"):
            state[name] = value.copy()  # whoever hooks the replica does not hook the module
    state["training"] = False
    state["_compiled_call_impl"] = None
    if own is not None:
        state["forward"] = MethodType(own.__func__, replica)
    vars(replica).update(state)
    vars(replica)["_modules"] = {
        name: None if child is None else _replica(child, done) for name, child in module._modules.items()
    }
    return replica
