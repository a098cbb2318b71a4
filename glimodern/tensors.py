"""Files of tensors, read with an error of one line for whatever is wrong with them; knows files, not modules."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"

# Parameters that public checkpoints may lack or hold in excess without any effect on the scores.
_IGNORED = (".pooler.", ".position_ids", ".inv_freq")
_HEAD_WIDTH = "prompt_rep_layer.3.bias"  # [hidden_size], in every span model


def weights_file(folder: Path) -> Path:
    """The file of a folder that holds its tensors; FileNotFoundError if there is none."""
    for name in (WEIGHTS_FILE, PICKLE_FILE):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no weights: wanted {WEIGHTS_FILE} or {PICKLE_FILE}, got neither; download them")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by safetensors, or by torch's loader that refuses code."""
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        state = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a whole safetensors file: {_sizes(file)} ({first_line(error)}); download or save it again"
        ) from error
    # the public package stores tensors that share memory once, and names the copies in the metadata
    state.update({copy: state[kept] for copy, kept in metadata.items() if kept in state and copy not in state})
    return state


def _sizes(file: Path) -> str:
    """What the header of a broken safetensors file promises, and what is there."""
    got = file.stat().st_size
    with file.open("rb") as opened:
        wanted = 8 + int.from_bytes(opened.read(8), "little")
        if 8 < wanted <= got:
            try:
                header = json.loads(opened.read(wanted - 8))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"wanted a header of tensor names and places, got {got} bytes of something else"
            wanted += max(ends, default=0)
    return f"wanted {wanted} bytes by its header, got {got}"


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        got = f"a pickle that runs code ({code[1]})" if code else f"{file.stat().st_size} bytes that it refuses"
        raise ValueError(
            f"{file}: refused: wanted tensors and nothing else, for torch's loader that runs no code, got {got}; "
            f"convert it to {WEIGHTS_FILE} on a machine where you trust it"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file}: not a whole file: wanted what torch.save writes, got {file.stat().st_size} bytes of it "
            f"({first_line(error) or type(error).__name__}); download or save it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file}: wanted a dictionary of tensors, got {type(state).__name__}; save a state_dict")
    return state


def first_line(error: Exception) -> str:
    """The first line of what a library says, 200 characters of it at most."""
    return next(iter(str(error).splitlines()), "")[:200]


def check_fit(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], file: Path, vocab_size: int) -> None:
    """ValueError unless a file's tensors are those of a model: the same names and shapes."""
    for name in (_HEAD_WIDTH, *wanted):
        if name not in wanted or name not in got or wanted[name].shape == got[name].shape:
            continue
        ours, theirs = tuple(wanted[name].shape), tuple(got[name].shape)
        if name == _HEAD_WIDTH:
            raise ValueError(
                f"{file}: hidden_size: wanted a head of width {ours[0]} (gliner_config.json), got one of {theirs[0]}; "
                "config and weights are not of one model"
            )
        if len(ours) == 2 == len(theirs) and ours[1] == theirs[1] and ours[0] == vocab_size:
            raise ValueError(
                f"{file}: vocab_size: wanted {ours[0]} rows of {name} (gliner_config.json), got {theirs[0]}; "
                "config, tokenizer and weights must be of one model"
            )
        raise ValueError(
            f"{file}: tensor {name}: wanted shape {ours} by the config, got {theirs}; "
            "config and weights are not of one model"
        )
    missing = [name for name in wanted if name not in got and not any(part in name for part in _IGNORED)]
    extra = [name for name in got if name not in wanted and not any(part in name for part in _IGNORED)]
    if missing or extra:
        hint = "; num_rnn_layers in gliner_config.json decides on rnn.*" if _rnn(missing + extra) else ""
        raise ValueError(
            f"{file}: wanted the {len(wanted)} tensors of the config, got {len(missing)} missing {missing[:4]} and "
            f"{len(extra)} unknown {extra[:4]}; config and weights are not of one model{hint}"
        )


def _rnn(names: list[str]) -> bool:
    return any(name.startswith("rnn.") for name in names)
