"""An encoder of ours on the parameters of a live transformers model, which stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import TransformersEncoder, packed_reason
from .base import Encoder


def share_parameters(module: nn.Module, state: dict[str, Tensor], whose: str) -> None:
    """Make state's tensors the parameters of a module. Raises ValueError where they are not its parameters."""
    try:
        result = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"parameters of another shape than {whose}'s: {error}") from error
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ValueError(f"parameters are not {whose}'s own: {', '.join(wrong[:3])}, {len(wrong)} in all")


def shadow_encoder(model: Any) -> Encoder:
    """model: a transformers encoder -> one of ours that shares its weights' memory, for inference.

    Nothing of `model` is changed: modules are copied, parameters are views without gradients. Raises ValueError, with
    the reason, for a model that does not run packed.
    """
    from transformers import ModernBertModel, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__module__}.{type(model).__name__}")
    if type(model) is ModernBertModel:
        from .modernbert import ModernBertEncoder

        with torch.device("meta"):
            encoder: Encoder = ModernBertEncoder(copy.deepcopy(model.config))
        share_parameters(encoder.model, model.state_dict(), "ModernBERT")
    else:
        packed, reason = packed_reason(model.config)
        if not packed:
            raise ValueError(reason)
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        encoder = TransformersEncoder(copy.deepcopy(model, shared))
    return encoder.eval().requires_grad_(False)
