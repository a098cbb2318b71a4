"""PyTorch's modes around what outlives a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lasting() -> Iterator[None]:
    """Make the tensors of the block ordinary tensors without gradients, inside `torch.inference_mode()` too.

    For what is kept after the call that makes it. A tensor made in inference mode stays an inference tensor: outside
    that mode it can be neither written nor saved for a backward pass.
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode)
    """
    with torch.inference_mode(False), torch.no_grad():
        yield
