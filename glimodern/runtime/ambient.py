"""What a process or a thread has set in torch for itself, kept away from what must not depend on it.

Loading, building and predicting give the same under torch.set_default_dtype, set_default_device, inference_mode and
set_grad_enabled as without them; so they do under autocast, but for the predictions of a model that can be trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

_HOST = torch.device("cpu")


@contextmanager
def lasting() -> Iterator[None]:
    """Make the tensors of the block ordinary tensors without gradients, inside `torch.inference_mode()` too.

    For what is kept after the call that makes it. A tensor made in inference mode stays an inference tensor: outside
    that mode it can be neither written nor saved for a backward pass.
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode)
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """`lasting`, with new tensors on the CPU and autocast off."""
    with ExitStack() as stack:
        stack.enter_context(lasting())
        stack.enter_context(_HOST)
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class _Parameters(TorchFunctionMode):
    """Has `torch.empty`, by which modules make their parameters, give fp32 tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            given = {name: value for name, value in kwargs.items() if value is not None}
            kwargs = {"dtype": torch.float32, "device": self.device, **given}
        return func(*args, **kwargs)


@contextmanager
def building(*, meta: bool = False) -> Iterator[None]:
    """`as_in_a_new_process`, in which modules are made with fp32 parameters.

    meta: parameters have shapes but no memory and no values, and nothing is drawn; buffers are as always, unless a
    module makes one by `torch.empty`. (torch.device("meta") alone would lose all buffers, of which those that no
    checkpoint stores, such as rotary frequencies, could not be had back.)
    """
    with as_in_a_new_process(), _Parameters(torch.device("meta") if meta else _HOST):
        yield


P = ParamSpec("P")
R = TypeVar("R")


def predicts(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Have a model's method give the same under any default device, and, of a model with `inference_only`, under
    autocast. Inference mode and gradients stay as they are."""

    @functools.wraps(method)
    def run(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            if torch.get_default_device() != _HOST:
                stack.enter_context(_HOST)
            for device in ("cpu", "cuda") if model.inference_only else ():
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return method(model, *args, **kwargs)

    return run
