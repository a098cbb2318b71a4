"""Reading and writing of checkpoints in the public GLiNER format; knows files, not modules.

A folder holds `gliner_config.json`, the weights and the tokenizer's files. The weights are in `model.safetensors`, in
`pytorch_model.bin` (read with `weights_only=True`), or in shards of either with an index. Weights in int8, which the
public package cannot read, are in `model.int8.safetensors`. The public package ignores two more files:
`calibration.json` holds the model's calibration, if it has one, and `fingerprint.json` what the model computed when it
was saved (`glimodern.checkpoint.fingerprint`). Reading a local folder uses no network. A name that is not a local path
is loaded from the hub.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimodern.data.calibration import Calibration
from glimodern.display import first_line
from glimodern.files.atomic import current_files, remove_if_empty, replace_files, user_path
from glimodern.files.hub import HubAccess, download_files, resolve_folder
from glimodern.files.stored_tokenizer import folder_tokenizer, whole_tokenizer
from glimodern.files.tensors import read_tensors
from glimodern.files.tokenizer import (
    LABELS_TOKENIZER,
    LABELS_TOKENIZER_FILES,
    TOKENIZER_FILES,
    check_rows,
    load_tokenizer,
)
from glimodern.files.weights import INT8_FILE, WEIGHTS_FILE, WEIGHTS_FILES, is_index, read_index, weights_file

from .calibration_file import CALIBRATION_FILE, read_calibration
from .config import CONFIG_FILE, ModelConfig, encoder_lookup, read_config
from .fingerprint import FINGERPRINT_FILE, Fingerprint

FILE_PATTERNS = (
    *WEIGHTS_FILES,
    *("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"),
    *TOKENIZER_FILES,
    f"{LABELS_TOKENIZER}/*",
    CALIBRATION_FILE,
    FINGERPRINT_FILE,
)
"""The files of a checkpoint beside its config, as glob patterns."""
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)", re.ASCII)  # as transformers names them
_MAX_READS = 4  # attempts to read a folder that another process writes to

# (prefix in this package, prefix in the public package) of the same parameters
PREFIXES = (
    ("encoder.model.", "token_rep_layer.bert_layer.model."),
    ("projection.", "token_rep_layer.projection."),
    ("label_encoder.encoder.model.", "token_rep_layer.labels_encoder.model."),
    ("label_encoder.projection.", "token_rep_layer.labels_projection."),
    ("rnn.", "rnn.lstm."),
    ("head.start.", "span_rep_layer.span_rep_layer.project_start."),
    ("head.end.", "span_rep_layer.span_rep_layer.project_end."),
    ("head.span.", "span_rep_layer.span_rep_layer.out_project."),
    ("head.prompt.", "prompt_rep_layer."),
    ("head.word.", "scorer.proj_token."),
    ("head.label.", "scorer.proj_label."),
    ("head.pair.", "scorer.out_mlp."),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    state: the tensors under this package's names.
    tokenizer: transformers', or a `StoredTokenizer`; so is labels_tokenizer.
    weights: the file of the tensors, or their index of shards.
    folder: the local folder, absolute.
    labels_tokenizer: a bi-encoder's second tokenizer, else None.
    calibration: of the file beside the weights, not compared with them yet; None if there is no such file.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Any
    weights: Path
    folder: Path
    labels_tokenizer: Any = None
    calibration: Calibration | None = None


def read_checkpoint(path_or_hub_id: str | os.PathLike[str], hub: HubAccess | None = None) -> Checkpoint:
    """Read config, tensors and tokenizer of a local folder or hub repository.

    If `write_checkpoint` replaces the checkpoint meanwhile, it is read again, so that all parts belong together.
    Raises FileNotFoundError or ValueError for a missing or broken part, and OSError if the folder keeps changing.
    """
    hub = hub or HubAccess()
    folder = resolve_folder(path_or_hub_id, hub)
    if folder != user_path(path_or_hub_id, "path_or_hub_id"):
        return _read_folder(folder, folder, (os.fspath(path_or_hub_id), hub))
    for _ in range(_MAX_READS):
        before = _stamp(folder)
        try:
            stored = _read_folder(folder, current_files(folder))
        except (OSError, ValueError):
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return stored
    raise OSError(
        f"{folder}: expected a checkpoint that does not change during reading, got one that keeps changing; wait until "
        "it is written"
    )


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, inode and modification time of each file of a checkpoint; they differ after a replacement."""
    names = [CONFIG_FILE, *WEIGHTS_FILES, *TOKENIZER_FILES, CALIBRATION_FILE, FINGERPRINT_FILE, *LABELS_TOKENIZER_FILES]
    files = [current_files(folder) / name for name in names]
    return [(os.fspath(file), file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _read_folder(folder: Path, files: Path, source: tuple[str, HubAccess] | None = None) -> Checkpoint:
    """Read a checkpoint. files: the folder with its current files. source: name and lookup of a hub repository."""
    hub = None if source is None else source[1]
    config = read_config(files, hub)
    weights = weights_file(files)
    state = from_public(read_tensors(weights))
    tokenizer = _read_tokenizer(files, config.model_name, hub)
    calibration = read_calibration(files)
    folder = folder.absolute()
    if config.labels_encoder is not None:
        if source is not None:
            download_files(source[0], [f"{LABELS_TOKENIZER}/*"], source[1])
        labels_tokenizer = _labels_tokenizer(files, config.labels_encoder, hub)
        check_rows(tokenizer.backend_tokenizer, config.vocab_size, files / "tokenizer.json")
        rows = (config.labels_encoder_config or {}).get("vocab_size")
        check_rows(labels_tokenizer.backend_tokenizer, rows, files / LABELS_TOKENIZER / "tokenizer.json")
        return Checkpoint(config, state, tokenizer, weights, folder, labels_tokenizer, calibration)
    if config.class_token_index == -1:
        tokenizer = whole_tokenizer(tokenizer)
        tokenizer.add_tokens(["[FLERT]", config.ent_token, config.sep_token], special_tokens=True)
        index = tokenizer.convert_tokens_to_ids(config.ent_token)
        config = replace(config, class_token_index=index, vocab_size=len(tokenizer))
    _check_vocabulary(files, config, tokenizer)
    return Checkpoint(config, state, tokenizer, weights, folder, calibration=calibration)


def _read_tokenizer(folder: Path, encoder: str, hub: HubAccess | None) -> Any:
    """Load the tokenizer of a checkpoint's folder, or of its encoder if the folder has none (old checkpoints).

    Raises ValueError for a broken tokenizer, and FileNotFoundError for a missing one.
    """
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    try:
        if not own:
            return load_tokenizer(encoder, **encoder_lookup(hub))
        return folder_tokenizer(folder)
    except Exception as error:  # the tokenizers library raises a bare Exception for a file it cannot read
        cause = f"{type(error).__name__}: {first_line(error)}"
        if own:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: expected a tokenizer, got files that transformers cannot read "
                f"({cause}); they may be incomplete, copy the tokenizer that was saved with these weights"
            ) from error
        raise FileNotFoundError(
            f"{folder}: no tokenizer: expected tokenizer.json and tokenizer_config.json, got neither, and the "
            f"tokenizer of model_name {encoder!r} could not be loaded ({cause}); copy it into the folder"
        ) from error


def _check_vocabulary(folder: Path, config: ModelConfig, tokenizer: Any) -> None:
    """Raise ValueError unless the tokenizer's prompt tokens and size match the config."""
    for name in ("ent_token", "sep_token"):
        token = getattr(config, name)
        index = tokenizer.convert_tokens_to_ids(token)
        if index is None or index == tokenizer.unk_token_id:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: {name}: expected {token!r} in the vocabulary, got {len(tokenizer)} "
                "tokens without it; copy the tokenizer that was saved with these weights"
            )
        if name == "ent_token" and index != config.class_token_index:
            raise ValueError(
                f"{folder / CONFIG_FILE}: class_token_index: expected the id of {token!r} in the tokenizer ({index}), "
                f"got {config.class_token_index}; the tokenizer is of another model, copy the one of these weights"
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder / CONFIG_FILE}: vocab_size: expected at least the {len(tokenizer)} tokens of the tokenizer, "
            f"got {config.vocab_size}; the tokenizer is of another model, copy the one of these weights"
        )


def _labels_tokenizer(folder: Path, name: str, hub: HubAccess | None) -> Any:
    """Load a bi-encoder's second tokenizer from its sub-folder, else (older checkpoints) from label encoder `name`."""
    if (folder / LABELS_TOKENIZER / "tokenizer_config.json").is_file():
        return folder_tokenizer(folder / LABELS_TOKENIZER, add_bos_eos=False)
    try:
        return load_tokenizer(name, add_bos_eos=False, **encoder_lookup(hub))
    except OSError as error:
        raise FileNotFoundError(
            f"{folder}: no folder {LABELS_TOKENIZER}, and the tokenizer of labels_encoder {name!r} could not be "
            f"loaded; copy it to {folder / LABELS_TOKENIZER}"
        ) from error


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    state: dict[str, Tensor],
    tokenizer: Any,
    labels_tokenizer: Any = None,
    calibration: Calibration | None = None,
    fingerprint: Fingerprint | None = None,
) -> None:
    """Write a checkpoint atomically (`replace_files`), in place of an older one in the same folder.

    All other files of the folder are kept, such as README.md. The files of an older checkpoint that are not written
    again are deleted: weights in another format, an index and its shards, other tokenizer files, labels_tokenizer,
    calibration.json without a calibration, and fingerprint.json without a fingerprint.

    Tensors that share memory are stored once, and the metadata names the copies, as in the public package. Warns for
    span_mode "ffn", which the public package does not know: only this package loads such a checkpoint.

    Raises ValueError for a folder that has files with these names but no gliner_config.json, because they belong to
    another model. Raises NotADirectoryError if `folder` is a file, and PermissionError for read-only files.
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
        int8 = any(tensor.dtype == torch.int8 for tensor in tensors.values())
        save_file(tensors, target / (INT8_FILE if int8 else WEIGHTS_FILE), metadata={"format": "pt", **copies})
        text = json.dumps(public_fields(config), indent=1, sort_keys=True)
        (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        whole_tokenizer(tokenizer).save_pretrained(target)
        if labels_tokenizer is not None:
            whole_tokenizer(labels_tokenizer).save_pretrained(target / LABELS_TOKENIZER)
        if calibration is not None:
            (target / CALIBRATION_FILE).write_text(calibration.to_json(), encoding="utf-8")
        if fingerprint is not None:
            (target / FINGERPRINT_FILE).write_text(fingerprint.to_json(), encoding="utf-8")


def remove_checkpoint(folder: Path) -> None:
    """Delete the files of a checkpoint, if there is one, and then its folder, unless that holds other files."""
    if (folder / CONFIG_FILE).is_file():
        for name in [*_stale(folder, set()), CONFIG_FILE]:
            (folder / name).unlink()
        remove_if_empty(folder / LABELS_TOKENIZER)
        remove_if_empty(folder)


def _refuse_another_model(folder: Path) -> None:
    """Raise ValueError if the folder has files with a checkpoint's names but no gliner_config.json."""
    if (folder / CONFIG_FILE).is_file():
        return
    names = (CONFIG_FILE, *WEIGHTS_FILES, *TOKENIZER_FILES, LABELS_TOKENIZER, CALIBRATION_FILE, FINGERPRINT_FILE)
    if others := [name for name in names if os.path.lexists(folder / name)]:
        raise ValueError(
            f"{folder}: expected no model or an older checkpoint to replace (with {CONFIG_FILE}), got files of another "
            f"model ({', '.join(others)}); choose another folder or move them away"
        )


def _stale(folder: Path, written: set[str]) -> list[str]:
    """Return the files of an older checkpoint to delete. written: the files of the new checkpoint."""
    shards: list[str] = []
    for index in WEIGHTS_FILES:
        if is_index(folder / index) and (folder / index).is_file():
            try:
                shards += read_index(folder / index)
            except ValueError:  # a broken index, whose shards are unknown
                continue
    shards = [shard for shard in shards if _SHARD.fullmatch(shard)]  # a file with another name may not be a shard
    # an index after its shards
    own = [*shards, *WEIGHTS_FILES, *TOKENIZER_FILES, *LABELS_TOKENIZER_FILES, CALIBRATION_FILE, FINGERPRINT_FILE]
    return [name for name in own if name not in written and (folder / name).is_file()]


def to_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the public package's names."""
    return {_rename(name, to_public=True): tensor for name, tensor in state.items()}


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file under this package's names."""
    return {_rename(name, to_public=False): tensor for name, tensor in state.items()}


def _rename(name: str, *, to_public: bool) -> str:
    for ours, public in PREFIXES:
        old, new = (ours, public) if to_public else (public, ours)
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def public_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the content of gliner_config.json, with every field that the public package reads."""
    fields = asdict(config)
    if config.labels_encoder is not None:
        fields["vocab_size"] = -1  # as in the public package, which compares any other value with the tokenizer
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


# Parameters that a public checkpoint may lack or have in addition, without effect on the scores.
_IGNORED = (".pooler.", ".position_ids", ".inv_freq")


def is_ignored(name: str) -> bool:
    """Return whether a tensor may be missing or additional, because it has no effect on the scores."""
    return any(part in name for part in _IGNORED)


# a bias of the head -> its elements / hidden_size; the first is in every span model, the second in token-level ones
_HEAD_WIDTHS = {"prompt_rep_layer.3.bias": 1, "scorer.proj_label.bias": 2}
_SPAN_HEAD, _TOKEN_HEAD = "span_rep_layer.", "scorer."  # prefixes of their tensors


def _check_head(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], file: Path) -> None:
    """Raise ValueError for the weights of a span head where the config has a token-level one, or the other way."""
    kinds = {_SPAN_HEAD: "a span head", _TOKEN_HEAD: "a token-level head"}
    of_config, of_file = (
        [prefix for prefix in kinds if any(name.startswith(prefix) for name in names)] for names in (expected, got)
    )
    if of_config and of_file and of_config != of_file:
        wanted, found = of_config[0], of_file[0]
        raise ValueError(
            f"{file}: span_mode: expected the weights of {kinds[wanted]} ({wanted}*) by gliner_config.json, got those "
            f"of {kinds[found]} ({found}*); config and weights are not of one model"
        )


def check_fit(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], file: Path, vocab_size: int) -> None:
    """Raise ValueError unless a file's tensors have the names and shapes of a model's, and are int8 where that is.

    expected: the model's tensors. got: the file's tensors. Both under the public package's names.
    """
    _check_head(expected, got, file)
    for name in (*_HEAD_WIDTHS, *expected):
        if name not in expected or name not in got or expected[name].shape == got[name].shape:
            continue
        shape, got_shape = tuple(expected[name].shape), tuple(got[name].shape)
        if name in _HEAD_WIDTHS:
            width, got_width = (each[0] // _HEAD_WIDTHS[name] for each in (shape, got_shape))
            raise ValueError(
                f"{file}: hidden_size: expected a head of width {width} (gliner_config.json), got {got_width}; "
                "config and weights are not of one model"
            )
        if len(shape) == 2 == len(got_shape) and shape[1] == got_shape[1] and shape[0] == vocab_size:
            raise ValueError(
                f"{file}: vocab_size: expected {shape[0]} rows of {name} (gliner_config.json), got {got_shape[0]}; "
                "config, tokenizer and weights must be of one model"
            )
        raise ValueError(
            f"{file}: tensor {name}: expected shape {shape} by the config, got {got_shape}; "
            "config and weights are not of one model"
        )
    missing = [name for name in expected if name not in got and not is_ignored(name)]
    extra = [name for name in got if name not in expected and not is_ignored(name)]
    if missing or extra:
        rnn = any(name.startswith("rnn.") for name in missing + extra)
        hint = "; num_rnn_layers in gliner_config.json sets the number of rnn.* tensors" if rnn else ""
        raise ValueError(
            f"{file}: expected the {len(expected)} tensors of the config, got {len(missing)} missing {missing[:4]} and "
            f"{len(extra)} unknown {extra[:4]}; config and weights are not of one model{hint}"
        )
    for name, tensor in expected.items():
        if name in got and got[name].dtype == torch.int8 != tensor.dtype:
            raise ValueError(
                f"{file}: tensor {name}: expected floats, got int8, which only linear layers and embeddings may have; "
                "save the model again"
            )
