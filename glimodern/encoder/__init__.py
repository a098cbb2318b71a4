"""Encoders: packed token ids in, packed hidden states out.

`build_encoder(config)` builds an encoder with random weights, `load_encoder(path_or_hub)` loads a pretrained one.

- `modernbert` implements ModernBERT itself.
- `adapter` wraps transformers' modules for all other architectures. BERT, DeBERTa, T5, MPNet and related models run a
  packed forward pass of this package (`bert`, `deberta`, `t5`, `mpnet`). The rest run transformers' forward pass,
  packed or padded.
- `shadow` builds an encoder of this package on the parameters of a live transformers model.

Importing this package imports torch only; transformers is imported on first use.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch

from glimodern.display import first_line
from glimodern.files.atomic import user_path
from glimodern.files.hub import HubAccess
from glimodern.layers.parameters import own_memory, take_tensors, without_values
from glimodern.runtime.ambient import building

from .base import Encoder
from .modernbert_settings import ModernBertSettings, completed_settings
from .transformers_config import transformers_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Encoder", "build_encoder", "load_encoder"]


def build_encoder(config: dict[str, Any] | PreTrainedConfig, *, values: bool = True) -> Encoder:
    """Build an encoder with random fp32 weights from a transformers config or its dict, without network access.

    config: copied, not modified. values: if False, the weights stay on the meta device, without memory and values,
    until `glimodern.layers.parameters.take_tensors` provides them.

    Raises TypeError if config is neither a dict nor a transformers config. Raises ValueError for a dict whose
    model_type is missing or unknown to transformers, and for an architecture without a separate encoder.
    """
    described = _described(config)
    if not values:
        return without_values(lambda: _build(described))
    with building():
        return _build(described)


def _described(config: dict[str, Any] | PreTrainedConfig) -> ModernBertSettings | PreTrainedConfig:
    """Return what an encoder is built from: our settings for ModernBERT, else a copy of the transformers config."""
    if isinstance(config, dict):
        model_type = config.get("model_type")
        if model_type == "modernbert":
            return completed_settings(config)
        if not isinstance(model_type, str):
            raise ValueError(f"config: expected a model_type such as 'modernbert' or 'bert', got {model_type!r}")
        return transformers_config(config)
    from transformers import PreTrainedConfig

    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"config: expected a dict or a transformers config, got {type(config).__name__}")
    if config.model_type == "modernbert":
        return ModernBertSettings.of(config.to_dict())
    return copy.deepcopy(config)


def _build(described: ModernBertSettings | PreTrainedConfig) -> Encoder:
    if isinstance(described, ModernBertSettings):
        from .modernbert import ModernBertEncoder

        return ModernBertEncoder(described)
    from .adapter import TransformersEncoder

    return TransformersEncoder(_model_class(described).from_config(described, dtype=torch.float32))


def load_encoder(path_or_hub: str | os.PathLike[str], hub: HubAccess | None = None) -> Encoder:
    """Load a pretrained encoder in fp32, in eval mode, from a local folder or a hub name.

    An existing folder is read without network access. Only a name that is not a path is looked up on the hub, with the
    options `hub`. Code from the hub is never run.

    Raises FileNotFoundError for a folder without config.json, for a path that does not exist and for a name that is not
    on the hub. Raises ValueError if `hub` has a revision and path_or_hub is a folder.
    """
    from transformers import AutoConfig

    name, hub = os.fspath(path_or_hub), hub or HubAccess()
    folder = user_path(name, "path_or_hub")
    if folder.is_dir():
        hub.check_folder(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"path_or_hub: expected a folder with a transformers model, got {name!r} without config.json; give the "
                "folder that save_pretrained wrote"
            )
        name, hub = str(folder), HubAccess(local_files_only=True)
    elif not isinstance(path_or_hub, str) or folder.exists() or folder.is_absolute() or name.startswith(("~", ".")):
        raise FileNotFoundError(
            f"path_or_hub: expected a folder or a hub name, got {name!r}, which is not a folder; give a model's folder "
            "or a hub name"
        )
    try:
        config = AutoConfig.from_pretrained(name, **hub.options())
    except OSError as error:
        raise FileNotFoundError(f"encoder {name!r}: no such folder here, and {hub.missed(name)}: {error}") from error
    with building():
        try:
            model: PreTrainedModel = _model_class(config).from_pretrained(
                name, config=config, dtype=torch.float32, **hub.options()
            )
        except OSError as error:
            raise FileNotFoundError(
                f"encoder {name!r}: expected weights that transformers reads, got none ({first_line(error)})"
            ) from error
    return _loaded(model)


def _loaded(model: PreTrainedModel) -> Encoder:
    """Build an encoder from a loaded transformers model, with copies of its weights."""
    if model.config.model_type == "modernbert":
        encoder = build_encoder(model.config, values=False)
        take_tensors(encoder.model, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        return encoder.eval()
    from .adapter import TransformersEncoder

    own_memory(model)
    with building():
        return TransformersEncoder(model).eval()


def _model_class(config: PreTrainedConfig) -> Any:
    """Return AutoModel, or the class that loads the encoder half of an encoder-decoder model such as T5."""
    from transformers import AutoModel, AutoModelForTextEncoding

    # The config of an encoder half has is_encoder_decoder False. The default of its class shows what AutoModel builds.
    if not config.is_encoder_decoder and not type(config)().is_encoder_decoder:
        return AutoModel
    if type(config) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding
    raise ValueError(
        f"model_type: expected an encoder, got {config.model_type!r}, an encoder-decoder model for which transformers "
        "has no class for its encoder alone; choose an encoder (e.g. BERT, ModernBERT, DeBERTa, T5)"
    )
