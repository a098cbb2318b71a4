"""Building modules without values and assigning loaded tensors as their parameters and buffers."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from glimodern.runtime.ambient import as_in_a_new_process, building

Module = TypeVar("Module", bound=nn.Module)


def without_values(build: Callable[[], Module]) -> Module:
    """Call `build` with parameters on the meta device; all other tensors get their values.

    If that leaves a non-persistent buffer, which no checkpoint stores, without a value, the module is built again with
    values, and the state of torch's generator is restored.
    """
    with building(meta=True):
        module = build()
    stored = module.state_dict(keep_vars=True)
    if not any(buffer.is_meta and name not in stored for name, buffer in module.named_buffers()):
        return module
    with torch.random.fork_rng(devices=[]), building():
        return build()


@as_in_a_new_process()
def take_tensors(module: nn.Module, state: dict[str, Tensor], keep: torch.dtype | None = None) -> None:
    """Assign the tensors of a state dict to a module, in the module's dtypes, and empty the dict.

    keep: a dtype whose tensors are not converted.

    state: its names and shapes must fit, which is not checked. A tensor that it lacks keeps its value, or becomes zero
    if it is on the meta device. Tied parameters stay tied. All other parameters get separate memory, even if tensors of
    the state share theirs.
    """
    targets = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, target in targets.items():
        tied.setdefault(id(target), []).append(name)
    taken: dict[str, Tensor] = {}
    seen: set[int] = set()  # addresses of storages that were assigned already
    for names in tied.values():
        target = targets[names[0]]
        given = [state.pop(name) for name in names if name in state]
        if not given:
            if target.is_meta:
                taken[names[0]] = torch.zeros_like(target, device="cpu", requires_grad=False)
            continue
        tensor = given[0]
        memory = tensor.untyped_storage()
        owns_storage = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        dtype = keep if tensor.dtype == keep else target.dtype
        taken[names[0]] = tensor.to(dtype, copy=not owns_storage).contiguous()
    state.clear()
    module.load_state_dict(taken, strict=False, assign=True)
    for name, *others in tied.values():
        for other in others:
            setattr(*_place(module, other), getattr(*_place(module, name)))


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the submodule that holds the tensor `name`, and the tensor's attribute name there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


@as_in_a_new_process()
def own_memory(module: nn.Module) -> None:
    """Copy parameters and buffers, which may lie in a memory-mapped file that other programs can write to."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
