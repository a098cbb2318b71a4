"""Tensors that were read, made the parameters and buffers of a module that was built without values."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from glimodern.runtime.ambient import as_in_a_new_process, building

Module = TypeVar("Module", bound=nn.Module)


def without_values(build: Callable[[], Module]) -> Module:
    """The module that `build` makes, its parameters on the meta device, its other tensors as they always are.

    Where a buffer that no checkpoint stores has no value either, the module is built again with values, and torch's
    generator left as it was.
    """
    with building(meta=True):
        module = build()
    stored = module.state_dict(keep_vars=True)
    if not any(buffer.is_meta and name not in stored for name, buffer in module.named_buffers()):
        return module
    with torch.random.fork_rng(devices=[]), building():
        return build()


@as_in_a_new_process()
def take_tensors(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Make the tensors of a state dict a module's own, in its dtypes; the dict is emptied as they are taken.

    Parameters that are one in the module (tied weights) stay one; all others get memory of their own, whatever tensors
    of the state share. What the state lacks keeps its value, or is zero if it has none. The state's names and shapes
    are known to fit.
    """
    targets = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, target in targets.items():
        tied.setdefault(id(target), []).append(name)
    taken: dict[str, Tensor] = {}
    seen: set[int] = set()  # memory
    for names in tied.values():
        target = targets[names[0]]
        given = [state.pop(name) for name in names if name in state]
        if not given:
            if target.is_meta:
                taken[names[0]] = torch.zeros_like(target, device="cpu", requires_grad=False)
            continue
        tensor = given[0]
        memory = tensor.untyped_storage()
        alone = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        taken[names[0]] = tensor.to(target.dtype, copy=not alone).contiguous()
    state.clear()
    module.load_state_dict(taken, strict=False, assign=True)
    for name, *others in tied.values():
        for other in others:
            setattr(*_place(module, other), getattr(*_place(module, name)))


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds a tensor, and its attribute there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


@as_in_a_new_process()
def own_memory(module: nn.Module) -> None:
    """Copy parameters and buffers that may lie in a mapped file, which others may write to."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
