"""Weight files of a checkpoint: their names, their order of preference, and indices of shards."""

import json
import re
from pathlib import Path

from glimodern.display import first_line, short

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # maps the tensors of a large model to shards
INT8_FILE = "model.int8.safetensors"  # a name that only this package reads: to others, int8 would be wrong floats
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
WEIGHTS_FILES = (WEIGHTS_FILE, INDEX_FILE, INT8_FILE, PICKLE_FILE, PICKLE_INDEX_FILE)
"""In order of preference, the public ones as in transformers: the first one that exists is read."""

_SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)


def weights_file(folder: Path) -> Path:
    """Return the weight file or shard index of a folder; FileNotFoundError if there is none."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    exported = (folder / "model.onnx").is_file()
    remedy = "open the exported model.onnx with glimodern.OnnxPredictor" if exported else "download one"
    raise FileNotFoundError(
        f"{folder}: no weights: expected {WEIGHTS_FILE}, {INT8_FILE} or {PICKLE_FILE}, or an index of shards "
        f"({INDEX_FILE}), got none of them; {remedy}"
    )


def is_index(file: Path) -> bool:
    """Return whether a weight file is an index of shards."""
    return file.name in (INDEX_FILE, PICKLE_INDEX_FILE)


def read_index(index: Path) -> dict[str, list[str]]:
    """Return {shard: its tensors} of an index; the shards are files beside it. Raises ValueError for a bad index."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{index}: not valid JSON: expected an index of shards, got {index.stat().st_size} bytes "
            f"({first_line(error)}); download it again"
        ) from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{index}: weight_map: expected an object of tensor names and files, got {short(weight_map)}; "
            "download it again"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise ValueError(
                f"{index}: weight_map: expected the name of a .safetensors or .bin file beside the index for {name!r}, "
                f"got {short(shard)}; download the index again from a trusted source"
            )
        shards.setdefault(shard, []).append(name)
    return shards
