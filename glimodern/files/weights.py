"""The files that hold a checkpoint's weights: their names, which one is read, and indices of shards."""

import json
import re
from pathlib import Path

from glimodern.display import first_line, short

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
