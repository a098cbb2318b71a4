"""Files of the public GLiNER checkpoint format, read and written; knows files, not modules.

A folder holds `gliner_config.json`, `model.safetensors` (or `pytorch_model.bin`, read with `weights_only=True`) and the
tokenizer's files. A local folder never touches the network; a name that is no path is taken from the hub.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from glimodern.files import atomic_folder
from glimodern.hub import CARD_FILE, HubAccess, download_files, resolve_folder
from glimodern.pooling import POOLINGS
from glimodern.prompt import load_tokenizer
from glimodern.public_config import read_fields, refuse_other_kinds, settle_old_fields
from glimodern.tensors import WEIGHTS_FILE, first_line, read_tensors, weights_file

CONFIG_FILE = "gliner_config.json"
LABELS_TOKENIZER = "labels_tokenizer"  # folder of a bi-encoder's second tokenizer

# (our prefix, the public one): the same parameters under the house's shorter names.
PREFIXES = (
    ("encoder.model.", "token_rep_layer.bert_layer.model."),
    ("projection.", "token_rep_layer.projection."),
    ("labels.encoder.model.", "token_rep_layer.labels_encoder.model."),
    ("labels.projection.", "token_rep_layer.labels_projection."),
    ("rnn.", "rnn.lstm."),
    ("head.start.", "span_rep_layer.span_rep_layer.project_start."),
    ("head.end.", "span_rep_layer.span_rep_layer.project_end."),
    ("head.span.", "span_rep_layer.span_rep_layer.out_project."),
    ("head.prompt.", "prompt_rep_layer."),
)


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
        for name in ("hidden_size", "max_width", "max_len", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: wanted a positive integer, got {value!r}")
        for name in ("num_rnn_layers", "class_token_index"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}: wanted an integer, got {getattr(self, name)!r}")
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read whole: config, tensors under the house's names, tokenizer, and the tensors' file."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Any
    weights: Path
    labels_tokenizer: Any = None

    @property
    def folder(self) -> Path:
        """Where it lay on this machine."""
        return self.weights.parent


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


def read_checkpoint(path_or_hub_id: str | os.PathLike[str], hub: HubAccess | None = None) -> Checkpoint:
    """Read config, tensors and tokenizer of a local folder or hub repository."""
    hub = hub or HubAccess()
    folder = resolve_folder(path_or_hub_id, hub)
    access = None if folder == Path(path_or_hub_id) else hub
    config = read_config(folder, access)
    weights = weights_file(folder)
    state = {_rename(name, to_public=False): tensor for name, tensor in read_tensors(weights).items()}
    tokenizer = _read_tokenizer(folder, config.model_name, access)
    if config.labels_encoder is not None:
        if access is not None:
            download_files(os.fspath(path_or_hub_id), [f"{LABELS_TOKENIZER}/*"], access)
        return Checkpoint(config, state, tokenizer, weights, _labels_tokenizer(folder, config.labels_encoder, access))
    if config.class_token_index == -1:
        tokenizer.add_tokens(["[FLERT]", config.ent_token, config.sep_token], special_tokens=True)
        index = tokenizer.convert_tokens_to_ids(config.ent_token)
        config = replace(config, class_token_index=index, vocab_size=len(tokenizer))
    _check_vocabulary(folder, config, tokenizer)
    return Checkpoint(config, state, tokenizer, weights)


def _read_tokenizer(folder: Path, encoder: str, hub: HubAccess | None) -> Any:
    """The tokenizer of a checkpoint's folder, or of its encoder if the checkpoint has none, as old ones. One line of
    error for a missing or half-written one."""
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    try:
        return load_tokenizer(str(folder), local_files_only=True) if own else load_tokenizer(encoder, **_lookup(hub))
    except Exception as error:  # the tokenizers library raises its bare class for a file it cannot read
        said = f"{type(error).__name__}: {first_line(error)}"
        if own:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: wanted a tokenizer, got files that transformers does not read "
                f"({said}); half written? Copy the tokenizer that was saved with these weights"
            ) from error
        raise FileNotFoundError(
            f"{folder}: no tokenizer: wanted tokenizer.json and tokenizer_config.json, got neither, and that of "
            f"model_name {encoder!r} was not to be had ({said}); copy it into the folder"
        ) from error


def _check_vocabulary(folder: Path, config: ModelConfig, tokenizer: Any) -> None:
    """ValueError unless tokenizer and config are of one model."""
    for name in ("ent_token", "sep_token"):
        token = getattr(config, name)
        index = tokenizer.convert_tokens_to_ids(token)
        if index is None or index == tokenizer.unk_token_id:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: {name}: wanted {token!r} in the vocabulary, got {len(tokenizer)} tokens "
                "without it; copy the tokenizer that was saved with these weights"
            )
        if name == "ent_token" and index != config.class_token_index:
            raise ValueError(
                f"{folder / CONFIG_FILE}: class_token_index: wanted the id of {token!r} in the tokenizer ({index}), "
                f"got {config.class_token_index}; tokenizer and weights are not of one model"
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder / CONFIG_FILE}: vocab_size: wanted at least the {len(tokenizer)} tokens of the tokenizer, "
            f"got {config.vocab_size}; tokenizer and weights are not of one model"
        )


def _labels_tokenizer(folder: Path, name: str, hub: HubAccess | None) -> Any:
    """A bi-encoder's second tokenizer: of its own folder, else (older files) of the label encoder it is named after."""
    if (folder / LABELS_TOKENIZER / "tokenizer_config.json").is_file():
        return load_tokenizer(str(folder / LABELS_TOKENIZER), add_bos_eos=False)
    try:
        return load_tokenizer(name, add_bos_eos=False, **_lookup(hub))
    except OSError as error:
        raise FileNotFoundError(
            f"{folder}: no folder {LABELS_TOKENIZER}, and the tokenizer of the label encoder {name!r} is not on this "
            f"machine; copy it to {folder / LABELS_TOKENIZER}"
        ) from error


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    state: dict[str, Tensor],
    tokenizer: Any,
    labels_tokenizer: Any = None,
) -> None:
    """Write a checkpoint that appears whole or not at all; an older one in its place is replaced.

    Tensors that share memory are stored once, and the metadata names the copies, as the public package does. Raises
    ValueError for a folder that holds anything but a checkpoint. The public package does not know span_mode "ffn":
    saving one warns that only this package loads it.
    """
    from safetensors.torch import save_file

    target_folder = Path(folder)
    if target_folder.is_dir() and any(target_folder.iterdir()) and not (target_folder / CONFIG_FILE).is_file():
        raise ValueError(f"{target_folder}: wanted a new folder or an older checkpoint to replace, got other files")
    if config.span_mode == "ffn":
        warnings.warn('span_mode "ffn" (the paper\'s head) is not known to the public gliner package', stacklevel=3)
    kept: dict[tuple[Any, ...], str] = {}
    copies: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for public, tensor in to_public(state).items():
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if memory in kept and tensor.numel():
            copies[public] = kept[memory]
        else:
            kept[memory] = public
            tensors[public] = tensor.detach().cpu().contiguous()
    with atomic_folder(folder) as target:
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt", **copies})
        text = json.dumps(_public_fields(config), indent=1, sort_keys=True)
        (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        tokenizer.save_pretrained(target)
        if labels_tokenizer is not None:
            labels_tokenizer.save_pretrained(target / LABELS_TOKENIZER)
        if (target_folder / CARD_FILE).is_file():
            shutil.copy2(target_folder / CARD_FILE, target / CARD_FILE)


def to_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the public package's names."""
    return {_rename(name, to_public=True): tensor for name, tensor in state.items()}


def _rename(name: str, *, to_public: bool) -> str:
    for ours, public in PREFIXES:
        old, new = (ours, public) if to_public else (public, ours)
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _public_fields(config: ModelConfig) -> dict[str, Any]:
    """gliner_config.json with every field that the public package reads back."""
    fields = asdict(config)
    if config.labels_encoder is not None:
        fields["vocab_size"] = -1  # as the public package writes it, which checks the tokenizer against it otherwise
    return {
        **fields,
        "model_type": None,
        "name": "glimodern",
        "fine_tune": True,
        "post_fusion_schema": "",
        "fuse_layers": False,
        "labels_decoder": None,
        "relations_layer": None,
        "span_encoder_config": None,
    }
