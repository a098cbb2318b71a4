"""Isolation from torch's ambient settings (default dtype and device, inference mode, gradients, autocast).

Loading, building and predicting return the same results under torch.set_default_dtype, set_default_device,
inference_mode and set_grad_enabled as without them. The same holds under autocast, with one exception: predictions of
a trainable model follow autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_HOST = torch.device("cpu")


@contextmanager
def lasting() -> Iterator[None]:
    """Create ordinary tensors without gradients in this block, even inside `torch.inference_mode()`.

    Use it for tensors that outlive the call that creates them. A tensor created in inference mode stays an inference
    tensor: outside that mode it can be neither written nor saved for a backward pass.
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode)
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Apply `lasting`, create new tensors on the CPU and disable autocast."""
    with ExitStack() as stack:
        stack.enter_context(lasting())
        stack.enter_context(_HOST)
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


# The functions that draw initial values. On the meta device they do nothing, but import torch._dynamo to do it, which
# takes more than a second.
_DRAWS = {
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
}


class _ParameterDefaults(TorchFunctionMode):
    """Make `torch.empty`, with which modules allocate their parameters, return fp32 tensors on one device.

    Tensors on the meta device are not initialised.
    """

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
        elif func in _DRAWS:
            drawn: torch.Tensor = args[0] if args else kwargs["tensor"]
            if drawn.is_meta:
                return drawn
        return func(*args, **kwargs)


@contextmanager
def building(*, meta: bool = False) -> Iterator[None]:
    """Apply `as_in_a_new_process` and give modules created in this block fp32 parameters.

    meta: allocate parameters on the meta device: they have shapes but no memory and no values, and no random numbers
        are drawn. Buffers are allocated as usual, unless a module allocates one with `torch.empty`.
        (`torch.device("meta")` alone would lose all buffers. Those that no checkpoint stores, such as rotary
        frequencies, could not be recovered.)
    """
    with as_in_a_new_process(), _ParameterDefaults(torch.device("meta") if meta else _HOST):
        yield


P = ParamSpec("P")
R = TypeVar("R")


def predicts(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Decorate a model's method to ignore the default device and, if `model.inference_only`, autocast.

    Inference mode and gradient mode are left as they are.
    """

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
