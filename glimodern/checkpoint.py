"""Files of the public GLiNER checkpoint format, read and written; knows files, not modules.

A folder holds `gliner_config.json`, `model.safetensors` (or `pytorch_model.bin`, read with `weights_only=True`) and the
tokenizer's files. A local folder never touches the network; a name that is no path is taken from the hub.
"""

import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimodern.hub import CARD_FILE, HubAccess, download_files, resolve_folder

CONFIG_FILE = "gliner_config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
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

    def __post_init__(self) -> None:
        for name in ("hidden_size", "max_width", "max_len", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: wanted a positive integer, got {value!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: wanted 0 <= dropout < 1, got {self.dropout!r}")


# field of gliner_config.json -> the values this package runs; anything else is a kind of model it does not have.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": (None, "gliner", "gliner_uni_encoder_span", "gliner_bi_encoder", "gliner_bi_encoder_span"),
    "span_mode": ("markerV0", "ffn"),
    "subtoken_pooling": ("first", None),
    "words_splitter_type": ("whitespace", None),
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
    "model_name": "microsoft/deberta-v3-small",
    "vocab_size": -1,
    "class_token_index": -1,
    "encoder_config": None,
    "labels_encoder": None,
    "labels_encoder_config": None,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read whole: its config, its tensors under the house's names, its tokenizer, and where it lay."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Any
    folder: Path
    labels_tokenizer: Any = None


def read_config(folder: Path, hub: HubAccess | None = None) -> ModelConfig:
    """`gliner_config.json` of a folder; ValueError for a kind of model that is not supported, saying which field.

    hub: how to look up the encoder of a file without encoder_config; None: without a network.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no {CONFIG_FILE}; wanted a folder in the public GLiNER format")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); is the file half written?") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: wanted a JSON object, got {type(fields).__name__}")
    for name, allowed in SUPPORTED.items():
        if name in fields and fields[name] not in allowed:
            wanted = " or ".join(repr(value) for value in allowed if value is not None) or "none"
            raise ValueError(
                f"{file}: {name} = {fields[name]!r} is not supported (wanted {wanted}); "
                "this package runs span models, with one encoder for text and labels or with one for each"
            )
    known = {**PUBLIC_DEFAULTS, **{name: fields[name] for name in PUBLIC_DEFAULTS if name in fields}}
    if known["encoder_config"] is None:
        known["encoder_config"] = _encoder_config(file, "encoder_config", "model_name", known["model_name"], hub)
    if known["labels_encoder"] is not None:
        if known["labels_encoder_config"] is None:
            known["labels_encoder_config"] = _encoder_config(
                file, "labels_encoder_config", "labels_encoder", known["labels_encoder"], hub
            )
        # texts hold no prompt, and the public package neither grows the embedding nor reads these
        known.update(vocab_size=known["encoder_config"]["vocab_size"], class_token_index=-1)
    return (
        ModelConfig(**known)
        if known["vocab_size"] > 0
        else ModelConfig(**{**known, "vocab_size": known["encoder_config"]["vocab_size"]})
    )


def _lookup(hub: HubAccess | None) -> dict[str, Any]:
    """How to look up an encoder that a checkpoint names: without a network where the checkpoint is a local folder."""
    return (HubAccess(local_files_only=True) if hub is None else replace(hub, revision=None)).options()


def _encoder_config(file: Path, field: str, name_field: str, name: str, hub: HubAccess | None) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name, **_lookup(hub)).to_dict()
    except OSError as error:
        raise ValueError(
            f"{file}: {field}: wanted the encoder's config, got none, and that of {name_field} {name!r} is not on this "
            f"machine; add the encoder's config.json as {field}"
        ) from error
    return config


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, by safetensors, or by torch's loader that refuses code; house names."""
    safe, pickled = folder / WEIGHTS_FILE, folder / PICKLE_FILE
    if safe.is_file():
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        try:
            state = load_file(safe)
            with safe_open(safe, framework="pt") as opened:
                metadata = opened.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{safe}: not a whole safetensors file ({error}); download or save it again") from error
        # the public package stores tensors that share memory once, and names the copies in the metadata
        state.update({copy: state[kept] for copy, kept in metadata.items() if kept in state and copy not in state})
    elif pickled.is_file():
        try:
            state = torch.load(pickled, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{pickled}: refused: not a plain file of tensors, or half written ({error}); "
                f"convert it to {WEIGHTS_FILE} on a machine where you trust it"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError(f"{pickled}: wanted a dictionary of tensors, got {type(state).__name__}")
    else:
        raise FileNotFoundError(f"{folder}: no weights; wanted {WEIGHTS_FILE} or {PICKLE_FILE}")
    return {_rename(name, to_public=False): tensor for name, tensor in state.items()}


def read_checkpoint(path_or_hub_id: str | os.PathLike[str], hub: HubAccess | None = None) -> Checkpoint:
    """Read config, tensors and tokenizer of a local folder or hub repository."""
    from glimodern.prompt import load_tokenizer

    hub = hub or HubAccess()
    folder = resolve_folder(path_or_hub_id, hub)
    access = None if folder == Path(path_or_hub_id) else hub
    config = read_config(folder, access)
    state = read_state(folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer_config.json); "
            f"copy it from the encoder {config.model_name!r}"
        )
    try:
        tokenizer = load_tokenizer(str(folder))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{folder}: tokenizer.json or its config is not valid JSON ({error}); half written?"
        ) from error
    if config.labels_encoder is not None:
        if access is not None:
            download_files(os.fspath(path_or_hub_id), [f"{LABELS_TOKENIZER}/*"], access)
        return Checkpoint(config, state, tokenizer, folder, _labels_tokenizer(folder, config.labels_encoder, access))
    index = tokenizer.convert_tokens_to_ids(config.ent_token)
    if config.class_token_index != -1 and index != config.class_token_index:
        raise ValueError(
            f"{folder}: class_token_index: wanted the id of {config.ent_token!r} in the tokenizer ({index}), "
            f"got {config.class_token_index}; tokenizer and weights are not of one model"
        )
    return Checkpoint(config, state, tokenizer, folder)


def _labels_tokenizer(folder: Path, name: str, hub: HubAccess | None) -> Any:
    """A bi-encoder's second tokenizer: of its own folder, else (older files) of the label encoder it is named after."""
    from glimodern.prompt import load_tokenizer

    if (folder / LABELS_TOKENIZER / "tokenizer_config.json").is_file():
        return load_tokenizer(str(folder / LABELS_TOKENIZER))
    try:
        return load_tokenizer(name, **_lookup(hub))
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

    Tensors that share memory are stored once, and the metadata names the copies, as the public package does. A
    README.md in the older one stays. Raises ValueError for a folder that holds anything but a checkpoint. The public
    package does not know span_mode "ffn": saving one warns that only this package loads it.
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
    for name, tensor in state.items():
        public = _rename(name, to_public=True)
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


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and vanishes when the block raises."""
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    os.chmod(staged, 0o777 & ~_umask())
    try:
        yield staged
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
            os.replace(final, old / "replaced")
            try:
                os.replace(staged, final)
            except OSError:
                os.replace(old / "replaced", final)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.replace(staged, final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
        "subtoken_pooling": "first",
        "words_splitter_type": "whitespace",
        "fine_tune": True,
        "post_fusion_schema": "",
        "fuse_layers": False,
        "labels_decoder": None,
        "relations_layer": None,
    }
