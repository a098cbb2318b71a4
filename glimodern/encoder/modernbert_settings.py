"""The fields of a ModernBERT config that the encoder reads.

A config that was stored whole is read here, without transformers, whose config classes take seconds to import. Any
other config (a field missing or under an old name) is completed by transformers' class first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Annotated, Any

from glimodern.settings import AT_LEAST_ONE, NOT_NEGATIVE, SHARE, check_settings

from .transformers_config import transformers_config

LAYER_TYPES = ("full_attention", "sliding_attention")
_COMPUTED_FROM = ("rope_scaling", "sliding_window")  # fields from which transformers' class computes others


@dataclass(kw_only=True)
class ModernBertSettings:
    """What ModernBERT's modules are built from, under the names of transformers' ModernBertConfig.

    stored: the whole config as a dict, with the fields that the encoder does not read.
    """

    vocab_size: Annotated[int, AT_LEAST_ONE]
    hidden_size: Annotated[int, AT_LEAST_ONE]
    intermediate_size: Annotated[int, AT_LEAST_ONE]
    num_hidden_layers: Annotated[int, AT_LEAST_ONE]
    num_attention_heads: Annotated[int, AT_LEAST_ONE]
    max_position_embeddings: Annotated[int, AT_LEAST_ONE]
    hidden_activation: str
    layer_types: list[str]
    local_attention: Annotated[int, NOT_NEGATIVE]
    rope_parameters: dict[str, Any]
    norm_eps: Annotated[float, NOT_NEGATIVE]
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    pad_token_id: int | None
    embedding_dropout: Annotated[float, SHARE]
    attention_dropout: Annotated[float, SHARE]
    mlp_dropout: Annotated[float, SHARE]
    initializer_range: Annotated[float, NOT_NEGATIVE]
    initializer_cutoff_factor: float | None
    stored: dict[str, Any]

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def of(cls, config: dict[str, Any]) -> ModernBertSettings:
        """Read a whole config, which the settings then own. Raises ValueError for a value of another type or range."""
        return cls(**{name: config[name] for name in _READ}, stored=config)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole config."""
        return {**copy.deepcopy(self.stored), "vocab_size": self.vocab_size}


_READ = tuple(field.name for field in fields(ModernBertSettings) if field.name != "stored")


def completed_settings(config: dict[str, Any]) -> ModernBertSettings:
    """Read a config as transformers reads it: with its defaults and old field names. The dict is not modified."""
    whole = config if _is_whole(config) else transformers_config(config).to_dict()
    return ModernBertSettings.of(copy.deepcopy(whole))


def _is_whole(config: dict[str, Any]) -> bool:
    """Whether transformers would take every field as it is: none is missing, under an old name or overruled."""
    if any(name in config for name in _COMPUTED_FROM) or any(name not in config for name in _READ):
        return False
    bases = config["rope_parameters"]
    if config["layer_types"] is None or not isinstance(bases, dict) or set(bases) != set(LAYER_TYPES):
        return False
    return all(isinstance(base, dict) and set(base) == {"rope_type", "rope_theta"} for base in bases.values())
