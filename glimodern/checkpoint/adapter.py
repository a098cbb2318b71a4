"""Reading and writing of adapters: low-rank updates (LoRA) of a checkpoint's encoder, in the format of peft.

A folder holds three files, and a fourth if the head was trained too:

- `adapter_config.json` and `adapter_model.safetensors` are peft's. `peft.PeftModel.from_pretrained` reads them on the
  transformers encoder. They are read here without peft.
- `adapter_base.json` names the base, the checkpoint that the adapter was trained on, and its `weights_fingerprint`.
- `head.safetensors` has what was trained outside the encoder, under the public package's names: all tensors there, or
  the factors LAYER.lora_A.weight and LAYER.lora_B.weight of updates, scaled as the encoder's are.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from glimodern.display import first_line, short
from glimodern.files.atomic import current_files, remove_if_empty, replace_files, user_path
from glimodern.files.tensors import read_tensors

from .folder import from_public, to_public
from .weights_fingerprint import weights_fingerprint

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FILE, HEAD_WEIGHTS = "adapter_base.json", "head.safetensors"
_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE, HEAD_WEIGHTS)
_AGAIN = "train the adapter again, or copy the whole folder"

# Fields of adapter_config.json with which the weight is not W + lora_alpha / r B A -> their values without effect
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "alpha_pattern": (None, {}),
    "rank_pattern": (None, {}),
    "use_dora": (None, False),
    "use_rslora": (None, False),
}
_PREFIX = "base_model.model."  # peft's, before the encoder's own names
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


class Update(NamedTuple):
    """An update of a linear layer's weight: W + b a, with a [r, inputs] and b [outputs, r], scaled."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    folder: where it was read from. base, base_fingerprint: name and `weights_fingerprint` of its base.
    updates: by the name of the layer in the encoder. head: all tensors outside the encoder, under this package's names;
    empty unless they were trained whole. head_updates: of layers outside the encoder, by their names in this package.
    fingerprint: hash of all of these.
    """

    folder: Path
    base: str
    base_fingerprint: str
    updates: dict[str, Update]
    head: dict[str, Tensor]
    head_updates: dict[str, Update]
    fingerprint: str

    def check_base(self, name: str, fingerprint: str) -> None:
        """Raise ValueError unless a model, given by its name and fingerprint, is the adapter's base."""
        if fingerprint != self.base_fingerprint:
            raise ValueError(
                f"{self.folder / BASE_FILE}: base_fingerprint: expected {fingerprint}, that of {name}, got "
                f"{self.base_fingerprint}, that of {self.base}; load the adapter on its own base, "
                "with the weights that it was trained on: not stored in int8 since, trained on or merged"
            )


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Read an adapter's folder. Raises FileNotFoundError and ValueError, which name the file, for a broken one."""
    path = user_path(folder, "adapter")
    if not path.is_dir():
        raise FileNotFoundError(f"adapter: expected a folder with {ADAPTER_CONFIG}, got {os.fspath(path)!r}")
    files = current_files(path)
    base = _read_fields(files / BASE_FILE)
    names = {name: _field(files / BASE_FILE, base, name, str) for name in ("base", "base_fingerprint")}
    has_head = _field(files / BASE_FILE, base, "head", bool)
    rank, scale = _read_config(files / ADAPTER_CONFIG)
    updates = _read_updates(files / ADAPTER_WEIGHTS, rank, scale)
    head, head_updates = _read_head(files / HEAD_WEIGHTS, rank, scale) if has_head else ({}, {})
    state = {
        f"{name}.{part}": getattr(update, part)
        for name, update in {**updates, **head_updates}.items()
        for part in ("a", "b")
    }
    fingerprint = weights_fingerprint({**state, **head})
    return Adapter(
        path.absolute(), **names, updates=updates, head=head, head_updates=head_updates, fingerprint=fingerprint
    )


def adapted_fingerprint(base: str, adapter: str) -> str:
    """Return the fingerprint of a base with an adapter, from theirs."""
    return hashlib.blake2b(f"{base} {adapter}".encode(), digest_size=16).hexdigest()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file of an adapter, got none; {_AGAIN}")
    return file


def _read_fields(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(_existing(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file}: expected a JSON object, got {file.stat().st_size} bytes that are none ({first_line(error)}); "
            f"{_AGAIN}"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: expected a JSON object, got {short(fields)}; {_AGAIN}")
    return fields


def _field(file: Path, fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if type(value) is not kind:
        raise ValueError(f"{file}: {name}: expected a {kind.__name__}, got {short(value)}; {_AGAIN}")
    return value


def _read_config(file: Path) -> tuple[int, float]:
    """Return rank and scale of peft's config. Raises ValueError for a kind of adapter that is not plain LoRA."""
    fields = _read_fields(file)
    if fields.get("peft_type") != "LORA":
        raise ValueError(
            f"{file}: peft_type: expected 'LORA', got {short(fields.get('peft_type'))}; merge it in peft, or train LoRA"
        )
    for name, plain in _PLAIN.items():
        if fields.get(name) not in plain:
            raise ValueError(
                f"{file}: {name}: expected {plain[1]!r}, plain LoRA, got {short(fields[name])}; merge it in peft"
            )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{file}: r: expected a whole number >= 1, got {short(rank)}; {_AGAIN}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0.0 < alpha < math.inf:
        raise ValueError(f"{file}: lora_alpha: expected a number above 0, got {short(alpha)}; {_AGAIN}")
    return rank, alpha / rank


def _read_updates(file: Path, rank: int, scale: float) -> dict[str, Update]:
    """Read the updates of the encoder by the layers' names, in fp32, with b scaled."""
    tensors = read_tensors(_existing(file))
    for name in tensors:
        if not name.startswith(_PREFIX) or _FACTOR.fullmatch(name) is None:
            raise ValueError(
                f"{file}: tensor {name}: expected {_PREFIX}LAYER.lora_A.weight or lora_B, got another name; it is no "
                "plain LoRA adapter of an encoder, merge it in peft"
            )
        shape = tuple(tensors[name].shape)
        if len(shape) != 2 or shape[".lora_B." in name] != rank:
            expected = f"(outputs, {rank})" if ".lora_B." in name else f"({rank}, inputs)"
            raise ValueError(
                f"{file}: tensor {name}: expected shape {expected} by r in {ADAPTER_CONFIG}, got {shape}; {_AGAIN}"
            )
    updates = _paired(file, tensors, scale)
    if not updates:
        raise ValueError(f"{file}: expected updates of linear layers, got no tensor; {_AGAIN}")
    return {name.removeprefix(_PREFIX): update for name, update in updates.items()}


def _read_head(file: Path, rank: int, scale: float) -> tuple[dict[str, Tensor], dict[str, Update]]:
    """Read the tensors outside the encoder, whole or as updates, of which one is empty, under this package's names.

    An update has the adapter's rank, or that of a layer with fewer inputs or outputs.
    """
    tensors = read_tensors(_existing(file))
    whole = [name for name in tensors if _FACTOR.fullmatch(name) is None]
    if len(whole) == len(tensors):
        return from_public(tensors), {}
    if whole:
        raise ValueError(
            f"{file}: tensor {whole[0]}: expected factors of updates alone, or whole tensors alone, got both; {_AGAIN}"
        )
    updates = _paired(file, tensors, scale)
    for name, (a, b) in updates.items():
        if not (a.ndim == b.ndim == 2 and len(a) == b.shape[1] == min(rank, a.shape[1], len(b))):
            raise ValueError(
                f"{file}: tensor {name}: expected factors ({rank}, inputs) and (outputs, {rank}) by r in "
                f"{ADAPTER_CONFIG}, got {tuple(a.shape)} and {tuple(b.shape)}; {_AGAIN}"
            )
    ours = from_public({f"{name}.weight": update.a for name, update in updates.items()})  # prefixes end with a dot
    return {}, {name.removesuffix(".weight"): update for name, update in zip(ours, updates.values(), strict=True)}


def _paired(file: Path, tensors: Mapping[str, Tensor], scale: float) -> dict[str, Update]:
    """Pair the factors of updates, named LAYER.lora_A.weight or lora_B, by their layers; in fp32, with b scaled."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            got = "others" if tensor.is_floating_point() else str(tensor.dtype)
            raise ValueError(f"{file}: tensor {name}: expected finite floats, got {got}; {_AGAIN}")
        layer, _, part = name.removesuffix(".weight").rpartition(".lora_")
        parts.setdefault(layer, {})[part] = tensor.float()
    for layer, pair in parts.items():
        if len(pair) < 2:
            missing = "B" if "A" in pair else "A"
            raise ValueError(f"{file}: tensor {layer}.lora_{missing}.weight: expected it, got none; {_AGAIN}")
    return {layer: Update(pair["A"], scale * pair["B"]) for layer, pair in parts.items()}


def write_adapter(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    lora: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    base: str,
    base_fingerprint: str,
) -> None:
    """Write an adapter atomically, in place of an older one in the same folder. All other files of the folder stay.

    config: the fields of adapter_config.json. lora: {LAYER.lora_A.weight or LAYER.lora_B.weight: tensor}. head: all
    tensors outside the encoder, or the factors of updates there, under this package's names; empty if neither was
    trained.

    Raises ValueError for a folder with files of these names that no `write_adapter` wrote.
    """
    from safetensors.torch import save_file

    final = user_path(folder, "folder")
    with replace_files(final, _stale, last=BASE_FILE) as target:
        others = [name for name in _FILES if os.path.lexists(final / name)]
        if others and BASE_FILE not in others:
            raise ValueError(
                f"{final}: expected no adapter or an older one of glimodern to replace, got {', '.join(others)} "
                f"without {BASE_FILE}; choose another folder or move them away"
            )
        save_file({_PREFIX + name: _stored(tensor) for name, tensor in lora.items()}, target / ADAPTER_WEIGHTS, _FORMAT)
        if head:
            save_file(
                {name: _stored(tensor) for name, tensor in to_public(head).items()}, target / HEAD_WEIGHTS, _FORMAT
            )
        fields = {"base": base, "base_fingerprint": base_fingerprint, "head": bool(head)}
        for name, content in ((ADAPTER_CONFIG, config), (BASE_FILE, fields)):
            (target / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def remove_adapter(folder: Path) -> None:
    """Delete the files of an adapter, if there is one, and then its folder, unless that holds other files."""
    if (folder / BASE_FILE).is_file():
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        remove_if_empty(folder)


_FORMAT = {"format": "pt"}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _stale(folder: Path, written: set[str]) -> list[str]:
    return [name for name in _FILES if name not in written and (folder / name).is_file()]
