"""TODO docstring."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glimodern.files.hub import HubAccess
from glimodern.files.tensors import (
    first_line,
)
from glimodern.settings import MOST_COUNTED, WIDTH

from .config import POOLINGS
from .legacy import read_fields, refuse_other_kinds, settle_old_fields

CONFIG_FILE = "gliner_config.json"


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's `gliner_config.json` says of the model, under the public names; lengths in words.

    hidden_size is the head's width d; an encoder of another width is projected. encoder_config is the encoder's own
    transformers config as a dict. class_token_index is the id of ent_token, vocab_size the rows of the embedding.
    labels_encoder and labels_encoder_config are a bi-encoder's second encoder, by name and config; else None.
    """

    encoder_config: dict[str, Any]
    hidden_size: int
    class_token_index: int
    vocab_size: int
    model_name: str = ""
    span_mode: str = "markerV0"
    max_width: int = 12
    max_len: int = 384
    max_types: int = 25
    dropout: float = 0.4
    num_rnn_layers: int = 0
    embed_ent_token: bool = True
    ent_token: str = "<<ENT>>"
    sep_token: str = "<<SEP>>"
    labels_encoder: str | None = None
    labels_encoder_config: dict[str, Any] | None = None
    subtoken_pooling: str = "first"
    words_splitter_type: str = "whitespace"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "max_width", "max_len", "max_types", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: wanted a positive integer, got {value!r}")
            most = int(WIDTH.most) if name == "hidden_size" else MOST_COUNTED
            if value > most:
                raise ValueError(f"{name}: expected an integer from 1 to {most}, got {value!r}")
        for name in ("num_rnn_layers", "class_token_index"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}: wanted an integer, got {getattr(self, name)!r}")
        if self.num_rnn_layers < 0:
            raise ValueError(f"num_rnn_layers: expected an integer of at least 0, got {self.num_rnn_layers!r}")
        for name in ("ent_token", "sep_token"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a token as text, got {getattr(self, name)!r}")
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: wanted 0 <= dropout < 1, got {self.dropout!r}")
        if self.subtoken_pooling not in POOLINGS:
            raise ValueError(f"subtoken_pooling: wanted one of {POOLINGS}, got {self.subtoken_pooling!r}")


# field of gliner_config.json -> the values this package runs; anything else is a kind of model it does not have.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": (None, "gliner", "gliner_uni_encoder_span", "gliner_bi_encoder", "gliner_bi_encoder_span"),
    "span_mode": ("markerV0", "marker", "ffn"),
    "subtoken_pooling": POOLINGS,
    "labels_decoder": (None,),
    "relations_layer": (None,),
    "span_encoder_config": (None,),
    "post_fusion_schema": ("", None),
    "fuse_layers": (False, None),
    "precomputed_prompts_mode": (False, None),
}

# What the public package assumes for a field that an old file does not have.
PUBLIC_DEFAULTS: dict[str, Any] = {
    "span_mode": "markerV0",
    "max_width": 12,
    "hidden_size": 512,
    "max_len": 384,
    "max_types": 25,
    "dropout": 0.4,
    "num_rnn_layers": 1,
    "embed_ent_token": True,
    "ent_token": "<<ENT>>",
    "sep_token": "<<SEP>>",
    "subtoken_pooling": "first",
    "words_splitter_type": "whitespace",
    "model_name": "microsoft/deberta-v3-small",
    "vocab_size": -1,
    "class_token_index": -1,
    "encoder_config": None,
    "labels_encoder": None,
    "labels_encoder_config": None,
}


def read_config(folder: Path, hub: HubAccess | None = None) -> ModelConfig:
    """`gliner_config.json` of a folder; ValueError for a kind of model that is not supported, saying which field.

    A class_token_index of -1 says that the prompt tokens are still to be added to tokenizer and embedding. hub: how to
    look up the encoder of a file without encoder_config; None: without a network.
    """
    file = folder / CONFIG_FILE
    fields = read_fields(file)
    refuse_other_kinds(file, fields, SUPPORTED)
    fields = settle_old_fields(file, fields)
    known = {**PUBLIC_DEFAULTS, **{name: fields[name] for name in PUBLIC_DEFAULTS if name in fields}}
    encoders = {"encoder_config": "model_name"}
    if known["labels_encoder"] is not None:
        encoders["labels_encoder_config"] = "labels_encoder"
    for field, name in encoders.items():
        if known[field] is None:
            known[field] = _encoder_config(file, field, name, known[name], hub)
        if not isinstance(known[field], dict):
            raise ValueError(f"{file}: {field}: wanted an object of fields, got {known[field]!r}")
    if known["labels_encoder"] is not None:
        # texts hold no prompt, and the public package neither grows the embedding nor reads these
        known.update(vocab_size=known["encoder_config"].get("vocab_size"), class_token_index=-1)
    elif -1 in (known["class_token_index"], known["vocab_size"]):
        rows = known["encoder_config"].get("vocab_size") if known["vocab_size"] == -1 else known["vocab_size"]
        known.update(class_token_index=-1, vocab_size=rows)
    try:
        return ModelConfig(**known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _lookup(hub: HubAccess | None) -> dict[str, Any]:
    """How to look up an encoder that a checkpoint names: without a network where the checkpoint is a local folder."""
    return (HubAccess(local_files_only=True) if hub is None else replace(hub, revision=None)).options()


def _encoder_config(file: Path, field: str, name_field: str, name: str, hub: HubAccess | None) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name, **_lookup(hub)).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: {field}: wanted the encoder's config, got none, and that of {name_field} {name!r} was not to be "
            f"had ({first_line(error)}); add its config.json there"
        ) from error
    return config


POOLINGS = ("first", "last", "mean", "max")
