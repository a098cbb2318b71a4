"""Where a command writes: checked before it computes anything, and never one of the files that it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glimodern.files.atomic import atomic_file, user_path

_OF_A_CHECKPOINT = ("*config.json", "tokenizer*", "special_tokens_map.json", "*.safetensors*", "*.bin*", "vocab*")


def check_output_file(argument: str, file: str | os.PathLike[str], reads: Iterable[str] = ()) -> Path:
    """The path of a file to write, its folder made. ValueError where it cannot be written, or is among what is read.

    reads: files and folders, by name or path; what is no path on this machine (a hub name) is passed over.
    """
    path = user_path(file, argument)
    if path.is_dir():
        raise ValueError(f"{argument}: expected a file to write, got the folder {path}; name a file in it")
    for read in reads:
        if _is_inside(path, user_path(read)) and path.exists():
            raise ValueError(
                f"{argument}: {path} is read by the same command, which would replace it; name another file"
            )
    _check_folder(argument, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{argument}: {path} cannot be written; name another file")
    return path


def checkpoint_files(model: str) -> list[str]:
    """The files of a checkpoint's folder that are read, not what else lies in it; none of a hub name."""
    folder = user_path(model, "model")
    return [str(file) for pattern in _OF_A_CHECKPOINT for file in folder.glob(pattern)] if folder.is_dir() else []


def check_output_folder(argument: str, folder: str | os.PathLike[str]) -> Path:
    """The path of a folder to write into, which need not exist yet and is not made. ValueError where it cannot be."""
    path = user_path(folder, argument)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{argument}: expected a path in UTF-8, got {os.fspath(path)!r}; name another folder"
        ) from error
    _check_folder(argument, path)
    return path


def _check_folder(argument: str, folder: Path) -> None:
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise ValueError(f"{argument}: {existing} is no folder, so nothing can be written there; name another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}: the folder {existing} cannot be written; name another place")


def check_not_read(argument: str, writes: Iterable[Path], reads: Mapping[str, Iterable[str]]) -> None:
    """ValueError if a run reads from what it replaces.

    writes: the files and folders that a run writes or deletes. reads: by setting, the paths that it reads; those that
    do not exist (hub names, no value) are passed over. Links, relative paths and other names of one file count.
    """
    for setting, names in reads.items():
        for name in names:
            source = user_path(name, setting)
            for target in writes:
                if _is_inside(source, target):
                    raise ValueError(
                        f"{argument}: {setting} reads {name}, which lies in {target}, and this run replaces that; "
                        f"choose another {argument}, or copy {name} first"
                    )


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether path is the file or folder `folder`, or lies in it, by whatever name."""
    if not path.exists() or not folder.exists():
        return False
    whole = path.resolve()
    # a pipe behind /dev/stdout has no path: what its link resolves to is not there
    return any(part.exists() and os.path.samefile(part, folder) for part in (whole, *whole.parents))


def write_report(path: Path, content: Any) -> None:
    """One JSON value, as write_text writes."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file appears whole or not at all, and a link to one stays a link; a pipe or device is written to.

    Lone surrogates, which UTF-8 has no form for, are written as escapes.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with atomic_file(path.resolve()) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
