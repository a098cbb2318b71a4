"""Readers of tensor files (safetensors, pickles, sharded indices); every fault raises an error of one line.

Knows files, not modules.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from glimodern.display import first_line
from glimodern.runtime.ambient import as_in_a_new_process

from .weights import WEIGHTS_FILE, is_index, read_index


@as_in_a_new_process()
def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or of the shards that an index names.

    Reads safetensors files, and pickles with `torch.load(weights_only=True)`, which runs no code. The tensors are on
    the CPU in their stored dtype and own their memory: later writes to the file do not change them.
    """
    copies: dict[str, str] = {}
    state = _read_shards(file, copies) if is_index(file) else _read_file(file, copies)
    # the public package stores tensors that share memory once and names the copies in the metadata
    state.update({copy: state[kept] for copy, kept in copies.items() if kept in state and copy not in state})
    return state


def _read_file(file: Path, copies: dict[str, str]) -> dict[str, Tensor]:
    """Read one file. copies: updated with the metadata of a safetensors file, {copy: stored tensor}."""
    return _read_safetensors(file, copies) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path, copies: dict[str, str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            copies.update(opened.metadata() or {})
        for name in names:
            with safe_open(file, framework="pt") as opened:  # reopened, else mapped pages accumulate in memory
                state[name] = opened.get_tensor(name).clone()
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a whole safetensors file: {_sizes(file)} ({first_line(error)}); download or save it again"
        ) from error
    return state


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
        tensors = _read_file(index.parent / shard, copies)
        absent = [name for name in names if name not in tensors]
        if absent:
            raise ValueError(
                f"{index}: expected {len(names)} tensors in {shard}, got {len(absent)} of them missing {absent[:4]}; "
                "index and shards are not of one model"
            )
        state.update({name: tensors[name] for name in names})
    return state


def _sizes(file: Path) -> str:
    """Describe the expected and the actual size of a broken safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        expected = 8 + int.from_bytes(opened.read(8), "little")
        if 8 < expected <= size:
            try:
                header = json.loads(opened.read(expected - 8))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"expected a header of tensor names and offsets, got {size} bytes without one"
            expected += max(ends, default=0)
    return f"expected {expected} bytes by its header, got {size}"


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        got = f"a pickle that runs code ({code[1]})" if code else f"{file.stat().st_size} bytes that torch refuses"
        raise ValueError(
            f"{file}: refused: expected tensors only (no code is run while reading), got {got}; "
            f"convert it to {WEIGHTS_FILE} on a machine where you trust it"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file}: not a whole file: expected what torch.save writes, got {file.stat().st_size} bytes of it "
            f"({first_line(error) or type(error).__name__}); download or save it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file}: expected a dictionary of tensors, got {type(state).__name__}; save a state_dict")
    return state
