"""An encoder of this package on the parameters of a live transformers model, which is not modified."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import TransformersEncoder, packed_reason
from .base import Encoder


def share_parameters(module: nn.Module, state: dict[str, Tensor], whose: str) -> None:
    """Assign the tensors of a state dict as a module's parameters, without copying.

    whose: the module's name in errors. Raises ValueError if names or shapes do not fit.
    """
    try:
        result = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"parameters: expected {whose}'s shapes, got others: {error}") from error
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ValueError(
            f"parameters: expected {whose}'s names, got {len(wrong)} missing or unknown: {', '.join(wrong[:3])}"
        )


def shadow_encoder(model: Any) -> Encoder:
    """Build an encoder for inference that shares the memory of a transformers model's weights.

    model: not modified; its modules are copied, and the parameters are views without gradients.

    Raises ValueError, with the reason, for a model that does not run packed.
    """
    from transformers import ModernBertModel, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: expected a transformers model, got {type(model).__module__}.{type(model).__name__}")
    if type(model) is ModernBertModel:
        from .modernbert import ModernBertEncoder
        from .modernbert_settings import ModernBertSettings

        with torch.device("meta"):
            encoder: Encoder = ModernBertEncoder(ModernBertSettings.of(model.config.to_dict()))
        share_parameters(encoder.model, model.state_dict(), "ModernBERT")
    else:
        packed, reason = packed_reason(model.config)
        if not packed:
            raise ValueError(reason)
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
        encoder = TransformersEncoder(copy.deepcopy(model, shared))
    return encoder.eval().requires_grad_(False)
