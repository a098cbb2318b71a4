"""The packer of a model's texts and labels, by its config; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glimodern.checkpoint.config import ModelConfig
from glimodern.inputs.label_packer import TextPacker
from glimodern.inputs.packer import Batch, Packer, PromptPacker
from glimodern.inputs.tokens import PackedArrays

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def packer_of(
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    as_batch: Callable[[PackedArrays], Batch],
    max_tokens: int | None,
    bi_encoder: bool,
) -> Packer[Batch]:
    """Build a model's packer. as_batch, max_tokens: see `Packer`. bi_encoder: texts have no prompt."""
    options: dict[str, Any] = {
        "as_batch": as_batch,
        "max_width": config.max_width,
        "any_width": config.any_width,
        "max_words": config.max_len,
        "max_tokens": max_tokens,
        "subtoken_pooling": config.subtoken_pooling,
    }
    if bi_encoder:
        return TextPacker(tokenizer, first_unknown_id=config.vocab_size, **options)
    return PromptPacker(
        tokenizer,
        ent_token=config.ent_token,
        sep_token=config.sep_token,
        embed_ent_token=config.embed_ent_token,
        **options,
    )
