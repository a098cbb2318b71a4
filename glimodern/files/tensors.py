"""Files of tensors, read with an error of one line for whatever is wrong with them; knows files, not modules."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glimodern.runtime.ambient import as_in_a_new_process

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # names the shards of a large model, and what each holds
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
WEIGHTS_FILES = (WEIGHTS_FILE, INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE)
"""The first of these that a folder has is read, as transformers does it."""

_SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)


def weights_file(folder: Path) -> Path:
    """The file of a folder that holds its tensors or names their shards; FileNotFoundError if there is none."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder}: no weights: expected {WEIGHTS_FILE} or {PICKLE_FILE}, or an index of shards ({INDEX_FILE}), "
        "got none of them; download them"
    )


def is_index(file: Path) -> bool:
    """Whether a file of weights is an index of shards."""
    return file.name in (INDEX_FILE, PICKLE_INDEX_FILE)


@as_in_a_new_process()
def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file or of an index's shards, by safetensors, or by torch's loader that refuses code.

    They are on the CPU, as stored, in memory of their own: writing to the file later does not change them.
    """
    copies: dict[str, str] = {}
    state = _read_shards(file, copies) if is_index(file) else _read_file(file, copies)
    # the public package stores tensors that share memory once, and names the copies in the metadata
    state.update({copy: state[kept] for copy, kept in copies.items() if kept in state and copy not in state})
    return state


def _read_file(file: Path, copies: dict[str, str]) -> dict[str, Tensor]:
    """copies: filled with the metadata of a safetensors file."""
    return _read_safetensors(file, copies) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path, copies: dict[str, str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            copies.update(opened.metadata() or {})
        for name in names:
            with safe_open(file, framework="pt") as opened:  # anew, so that pages of the file do not add up in memory
                state[name] = opened.get_tensor(name).clone()
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a whole safetensors file: {_sizes(file)} ({first_line(error)}); download or save it again"
        ) from error
    return state


def read_index(index: Path) -> dict[str, list[str]]:
    """The shards that an index names, files beside it, with the tensors that each holds. ValueError for a bad one."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{index}: not valid JSON: expected an index of shards, got {index.stat().st_size} bytes that break off or "
            f"are none ({first_line(error)}); download it again"
        ) from error
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError(
            f"{index}: weight_map: expected an object of tensor names and files, got {short(where)}; download it again"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in where.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ValueError(
                f"{index}: weight_map: expected the name of a .safetensors or .bin file beside the index for {name!r}, "
                f"got {short(shard)}; an index of another folder, or a forged one, is not read"
            )
        shards.setdefault(shard, []).append(name)
    return shards


def _read_shards(index: Path, copies: dict[str, str]) -> dict[str, Tensor]:
    shards = read_index(index)
    missing = [shard for shard in sorted(shards) if not (index.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index}: expected {len(shards)} shards beside it, got {len(shards) - len(missing)}, without "
            f"{', '.join(missing[:4])}; download them"
        )
    state: dict[str, Tensor] = {}
    for shard, names in sorted(shards.items()):
        held = _read_file(index.parent / shard, copies)
        absent = [name for name in names if name not in held]
        if absent:
            raise ValueError(
                f"{index}: expected {len(names)} tensors in {shard}, got {len(absent)} of them missing {absent[:4]}; "
                "index and shards are not of one model"
            )
        state.update({name: held[name] for name in names})
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


def short(value: Any) -> str:
    """A value as it is written, 60 characters of it at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
