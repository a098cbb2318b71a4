"""The number of tokens that a model computes at a time."""

from __future__ import annotations

import functools
import time

import torch

from .stream import check_batch_tokens

_CPU_BATCH_TOKENS = 2048  # measured (docs/LOG.md): more is not faster, fewer leave cores idle at a batch's end
_CUDA_BATCH_TOKENS = (4096, 65_536)  # min and max


def activation_bytes(weight: torch.Tensor, width: int) -> int:
    """Approximate activation bytes per token for head width `width` in `weight.dtype`."""
    return 40 * width * weight.element_size()


def resolve_batch_tokens(batch_tokens: int | str, device: torch.device, bytes_per_token: int) -> int:
    """Return the maximum tokens of a batch.

    "auto": on a CPU, enough tokens to keep its cores busy; on a GPU, the tokens whose activations take half of its free
    memory, within the limits of `_CUDA_BATCH_TOKENS`. bytes_per_token: see `activation_bytes`.
    """
    given = check_batch_tokens(batch_tokens)
    if given is not None:
        return given
    return _CPU_BATCH_TOKENS if device.type != "cuda" else _cuda_batch_tokens(device, bytes_per_token)


def _cuda_batch_tokens(device: torch.device, bytes_per_token: int) -> int:
    """Return the tokens whose activations take half of a GPU's free memory, within the limits."""
    least, most = _CUDA_BATCH_TOKENS
    return min(max(_free_bytes(device, int(time.monotonic())) // 2 // bytes_per_token, least), most)


@functools.lru_cache(maxsize=16)
def _free_bytes(device: torch.device, second: int) -> int:
    """Return a GPU's free bytes, PyTorch's unused cache included.

    The driver call is slow, but other processes allocate and free memory meanwhile: `second`, the current time, makes
    the cached value expire after one second.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
