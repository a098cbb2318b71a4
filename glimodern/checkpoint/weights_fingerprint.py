"""A cheap hash of a model's weights, which ties other files (a calibration) to them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .folder import is_ignored
from .quantised import every_nth, is_scale

_SAMPLE = 4096  # values of each tensor that are read, approximately


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a hash of every weight's name, shape and a sample of its values, rounded to bf16.

    state: a model's state dict. So rounded, a copy of a model that is stored or computed in bf16 has the same hash. A
    weight in int8 counts as what it stands for. The hash does not depend on the machine or the order of the tensors.
    Tensors without effect on the scores do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        if is_ignored(name) or is_scale(name) or not (tensor.is_floating_point() or tensor.dtype == torch.int8):
            continue
        sample = every_nth(state, name, max(1, tensor.numel() // _SAMPLE)).cpu().to(torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
