"""Encoders: packed token ids in, packed hidden states out.

`build_encoder(config)` makes one with random weights, `load_encoder(path_or_hub)` a pretrained one. ModernBERT is our
own (`modernbert`); all others are transformers' modules, held by `adapter`: BERT, DeBERTa, T5, MPNet and their kin take
our own pass through the layers (`bert`, `deberta`, `t5`, `mpnet`), the rest run as they are, packed or padded. `shadow`
makes one of ours on a live model's parameters. Importing this package imports torch only. Attention, relative and
rotary positions, dropout and packed linear layers have a file each.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, cast

import torch

from glimodern.display import first_line
from glimodern.files.atomic import user_path
from glimodern.files.hub import HubAccess
from glimodern.layers.parameters import own_memory, take_tensors, without_values
from glimodern.runtime.ambient import building

from .base import Encoder

if TYPE_CHECKING:
    from transformers import ModernBertConfig, PreTrainedConfig, PreTrainedModel

__all__ = ["Encoder", "build_encoder", "load_encoder"]


def build_encoder(config: dict[str, Any] | PreTrainedConfig, *, values: bool = True) -> Encoder:
    """An encoder with random fp32 weights, from a transformers config or its dict; never touches the network.

    The config is copied. values: False leaves the weights on the meta device, without memory and values
    (`glimodern.layers.parameters` gives them some). Raises ValueError for a dict without a model_type that transformers
    knows, and for an architecture with no encoder of its own.
    """
    from transformers import AutoConfig, PreTrainedConfig

    if isinstance(config, dict):
        fields = copy.deepcopy(config)
        kind = fields.pop("model_type", None)
        if not isinstance(kind, str):
            raise ValueError(f"config must name its model_type (e.g. 'modernbert', 'bert'), got {kind!r}")
        config = AutoConfig.for_model(kind, **fields)
    elif isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    else:
        raise TypeError(f"config must be a dict or a transformers config, got {type(config).__name__}")
    if values:
        with building():
            return _build(config)
    known = config
    return without_values(lambda: _build(known))


def _build(config: PreTrainedConfig) -> Encoder:
    if config.model_type == "modernbert":
        from .modernbert import ModernBertEncoder

        return ModernBertEncoder(cast("ModernBertConfig", config))
    from .adapter import TransformersEncoder

    return TransformersEncoder(_model_class(config).from_config(config, dtype=torch.float32))


def load_encoder(path_or_hub: str | os.PathLike[str], hub: HubAccess | None = None) -> Encoder:
    """A pretrained encoder in fp32, from a local folder or a hub name; in evaluation mode, as transformers gives it.

    A folder that exists is read without any network; only a name that is no path goes to the hub, as `hub` says. Code
    from the hub is never run. Raises FileNotFoundError for a folder without config.json, for a path that does not exist
    and for a name that the hub does not give, and ValueError for a revision of a folder.
    """
    from transformers import AutoConfig

    name, hub = os.fspath(path_or_hub), hub or HubAccess()
    folder = user_path(name, "path_or_hub")
    if folder.is_dir():
        hub.check_folder(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"path_or_hub {name!r} is a folder without config.json, so no transformers model; "
                "give the folder that save_pretrained wrote"
            )
        name, hub = str(folder), HubAccess(local_files_only=True)
    elif not isinstance(path_or_hub, str) or folder.exists() or folder.is_absolute() or name.startswith(("~", ".")):
        raise FileNotFoundError(f"path_or_hub {name!r} is not a folder; give a model's folder or a hub name")
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
    """An encoder with the weights of a transformers model that was read, in memory of their own."""
    if model.config.model_type == "modernbert":
        encoder = without_values(lambda: _build(model.config))
        take_tensors(encoder.model, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        return encoder.eval()
    from .adapter import TransformersEncoder

    own_memory(model)
    with building():
        return TransformersEncoder(model).eval()


def _model_class(config: PreTrainedConfig) -> Any:
    """AutoModel, or the class that loads the encoder half of an encoder-decoder model (T5 and its kin)."""
    from transformers import AutoModel, AutoModelForTextEncoding

    # an encoder half's own config says "no encoder-decoder" of itself; its class still says what AutoModel would build
    if not config.is_encoder_decoder and not type(config)().is_encoder_decoder:
        return AutoModel
    if type(config) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding
    raise ValueError(
        f"{config.model_type} is an encoder-decoder model and transformers has no class for its encoder alone; "
        "choose an encoder (e.g. BERT, ModernBERT, DeBERTa, T5)"
    )
