"""Files of the public GLiNER checkpoint format, read and written; knows files, not modules.

A folder holds `gliner_config.json`, `model.safetensors` (or `pytorch_model.bin`, read with `weights_only=True`, or an
index and the shards of either) and the tokenizer's files. A local folder never touches the network; a name that is no
path is taken from the hub.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from glimodern.files import current_files, replace_files, user_path
from glimodern.hub import HubAccess, download_files, resolve_folder
from glimodern.pooling import POOLINGS
from glimodern.prompt import load_tokenizer
from glimodern.public_config import read_fields, refuse_other_kinds, settle_old_fields
from glimodern.settings import MOST_COUNTED, WIDTH
from glimodern.tensors import (
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    first_line,
    is_index,
    read_index,
    read_tensors,
    weights_file,
)

CONFIG_FILE = "gliner_config.json"
LABELS_TOKENIZER = "labels_tokenizer"  # folder of a bi-encoder's second tokenizer
# What transformers writes and reads for any tokenizer. Vocabularies (vocab.txt, spiece.model) it reads only where there
# is no tokenizer.json, which a checkpoint that is written here has.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", re.ASCII)  # as transformers names them
_READS = 4  # of a folder that is written to meanwhile

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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read whole: config, tensors under the house's names, tokenizer, and the tensors' file.

    folder: where it lies on this machine.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Any
    weights: Path
    folder: Path
    labels_tokenizer: Any = None


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
    """Read config, tensors and tokenizer of a local folder or hub repository.

    A checkpoint that is replaced meanwhile (by `write_checkpoint`) is read again, so that all parts are of one.
    """
    hub = hub or HubAccess()
    folder = resolve_folder(path_or_hub_id, hub)
    if folder != user_path(path_or_hub_id, "path_or_hub_id"):
        return _read_folder(folder, folder, (os.fspath(path_or_hub_id), hub))
    for _ in range(_READS):
        before = _stamp(folder)
        try:
            stored = _read_folder(folder, current_files(folder))
        except (OSError, ValueError):
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return stored
    raise OSError(f"{folder}: expected a checkpoint that stays as it is while it is read, got one that keeps changing")


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Tells whether a checkpoint's files were replaced: the name, place and time of each."""
    own = (CONFIG_FILE, *WEIGHTS_FILES, *_TOKENIZER_FILES, *(f"{LABELS_TOKENIZER}/{name}" for name in _TOKENIZER_FILES))
    files = [current_files(folder) / name for name in own]
    return [(os.fspath(file), file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _read_folder(folder: Path, files: Path, source: tuple[str, HubAccess] | None = None) -> Checkpoint:
    """files: where the folder's files are. source: of a hub repository, its name and how it is looked up."""
    hub = None if source is None else source[1]
    config = read_config(files, hub)
    weights = weights_file(files)
    state = {_rename(name, to_public=False): tensor for name, tensor in read_tensors(weights).items()}
    tokenizer = _read_tokenizer(files, config.model_name, hub)
    folder = folder.absolute()
    if config.labels_encoder is not None:
        if source is not None:
            download_files(source[0], [f"{LABELS_TOKENIZER}/*"], source[1])
        labels_tokenizer = _labels_tokenizer(files, config.labels_encoder, hub)
        return Checkpoint(config, state, tokenizer, weights, folder, labels_tokenizer)
    if config.class_token_index == -1:
        tokenizer.add_tokens(["[FLERT]", config.ent_token, config.sep_token], special_tokens=True)
        index = tokenizer.convert_tokens_to_ids(config.ent_token)
        config = replace(config, class_token_index=index, vocab_size=len(tokenizer))
    _check_vocabulary(files, config, tokenizer)
    return Checkpoint(config, state, tokenizer, weights, folder)


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
    """Write a checkpoint that appears whole or not at all (`replace_files`); an older one in its place is replaced.

    What else the folder holds stays, a README.md too. Of an older checkpoint what is not written anew goes: weights in
    another form, an index and its shards, the tokenizer's other files, labels_tokenizer.

    Tensors that share memory are stored once, and the metadata names the copies, as the public package does. The public
    package does not know span_mode "ffn": saving one warns that only this package loads it.

    Raises ValueError for a folder that has files of these names but no gliner_config.json: they are another model's.
    Raises NotADirectoryError for a path that is a file, and PermissionError for files that may not be written.
    """
    from safetensors.torch import save_file

    final = user_path(folder, "folder")
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
    with replace_files(final, _stale, last=CONFIG_FILE) as target:
        _refuse_another_model(final)
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt", **copies})
        text = json.dumps(_public_fields(config), indent=1, sort_keys=True)
        (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        tokenizer.save_pretrained(target)
        if labels_tokenizer is not None:
            labels_tokenizer.save_pretrained(target / LABELS_TOKENIZER)


def _refuse_another_model(folder: Path) -> None:
    """ValueError for files that a checkpoint would replace or be read with, unless they are of a checkpoint."""
    if (folder / CONFIG_FILE).is_file():
        return
    names = (CONFIG_FILE, *WEIGHTS_FILES, *_TOKENIZER_FILES, LABELS_TOKENIZER)
    if others := [name for name in names if os.path.lexists(folder / name)]:
        raise ValueError(
            f"{folder}: expected no model or an older checkpoint to replace (with {CONFIG_FILE}), got files of another "
            f"model ({', '.join(others)}); choose another folder or move them away"
        )


def _stale(folder: Path, written: set[str]) -> list[str]:
    """The files of an older checkpoint that a new one of these names leaves behind."""
    shards: list[str] = []
    for index in WEIGHTS_FILES:
        if is_index(folder / index) and (folder / index).is_file():
            try:
                shards += read_index(folder / index)
            except ValueError:  # what it was an index of cannot be told
                continue
    shards = [shard for shard in shards if _SHARD.fullmatch(shard)]  # by whatever other names, it may be anything
    labels = [f"{LABELS_TOKENIZER}/{name}" for name in _TOKENIZER_FILES]
    own = [*shards, *WEIGHTS_FILES, *_TOKENIZER_FILES, *labels]  # an index after its shards
    return [name for name in own if name not in written and (folder / name).is_file()]


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
