"""The replacement of the forward pass of gliner's encoder, which runs packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glimodern.encoder import Encoder
from glimodern.ops.dispatch import warn_once

from .shadows import Shadow, build_encoder, why_plain


class EncoderForward:
    """Replaces gliner's `Transformer.forward`."""

    def __init__(self, layer: Any, pack: bool) -> None:
        self.layer = layer
        self.shadow: Shadow[Encoder] = Shadow(build_encoder, layer, [layer.model], pack)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Encode padded texts: input_ids, attention_mask [b, tokens] -> hidden states [b, tokens, hidden_size].

        The hidden states of padding are zero. With other arguments, gliner's own encoder runs.
        """
        given = dict(kwargs)
        ids = args[0] if args else given.pop("input_ids", None)
        mask = given.pop("attention_mask", None)
        given.pop("token_lengths", None)
        reason = why_plain(self.layer)
        if not reason and (len(args) > 1 or given or ids is None or mask is None):
            reason = f"its encoder got more than ids and a mask ({', '.join(given) or 'positional arguments'})"
        encoder = self.shadow.current() if not reason else reason
        if isinstance(encoder, str):
            return self._own(encoder, args, kwargs)
        lengths = mask.sum(1)
        inside = mask.bool()
        if not starts_left_and_fits(encoder, inside, lengths):
            return self._own("a text is padded on its left or longer than the encoder's positions", args, kwargs)
        hidden = encoder(ids[inside], text_bounds(lengths.tolist(), ids.device), int(lengths.max()))
        padded = hidden.new_zeros(*ids.shape, hidden.shape[1])
        padded[inside] = hidden
        return padded

    def _own(self, reason: str, args: Any, kwargs: Any) -> Tensor:
        warn_once(f"accelerate_gliner: gliner's own encoder runs: {reason}")
        hidden: Tensor = type(self.layer).forward(self.layer, *args, **kwargs)
        return hidden


def text_bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Compute cu_seqlens, int32 [texts + 1], from the texts' lengths."""
    return torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)


def starts_left_and_fits(encoder: Encoder, inside: Tensor, lengths: Tensor) -> bool:
    """Whether the texts of a padded batch [b, tokens] are padded on the right only and fit the encoder's positions.

    inside: bool [b, tokens], True at tokens. lengths: tokens of each text.
    """
    longest = int(lengths.max())
    if encoder.max_length is not None and longest > encoder.max_length:
        return False
    return torch.equal(inside, torch.arange(inside.shape[1], device=inside.device) < lengths[:, None])
