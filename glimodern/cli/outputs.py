"""Checks of output paths, made before a command computes anything; an output never replaces an input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glimodern.files.atomic import atomic_file, user_path

_CHECKPOINT_PATTERNS = ("*config.json", "tokenizer*", "special_tokens_map.json", "*.safetensors*", "*.bin*", "vocab*")


def check_output_file(argument: str, file: str | os.PathLike[str], reads: Iterable[str] = ()) -> Path:
    """Return the path of an output file and create its parent folder.

    reads: files and folders that the command reads; names that do not exist locally (hub names) are skipped.
    Raises ValueError if the file cannot be written, or is one of `reads` or inside one of them.
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
    """Return the files of a checkpoint folder that loading reads; an empty list for a hub name."""
    folder = user_path(model, "model")
    return [str(file) for pattern in _CHECKPOINT_PATTERNS for file in folder.glob(pattern)] if folder.is_dir() else []


def check_output_folder(argument: str, folder: str | os.PathLike[str]) -> Path:
    """Return the path of an output folder; it need not exist and is not created.

    Raises ValueError if it could not be created or written to, or if its path is not UTF-8.
    """
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
        raise ValueError(f"{argument}: expected a folder, got {existing}, which is no folder; name another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}: the folder {existing} cannot be written; name another folder")


def check_not_read(argument: str, writes: Iterable[Path], reads: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError if a run reads a file that it replaces.

    writes: files and folders that the run writes or deletes. reads: {setting: paths that the run reads}; paths that do
    not exist (hub names, empty values) are skipped. Links, relative paths and other names of the same file count.
    """
    for setting, names in reads.items():
        for name in names:
            source = user_path(name, setting)
            for target in writes:
                if _is_inside(source, target):
                    raise ValueError(
                        f"{argument}: {setting} reads {name}, which lies in {target}, and this run replaces {target}; "
                        f"choose another {argument}, or copy {name} first"
                    )


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or lies inside it, under any name; `folder` may be a file."""
    if not path.exists() or not folder.exists():
        return False
    resolved = path.resolve()
    # the pipe behind /dev/stdout has no path: its link resolves to a name that does not exist
    return any(part.exists() and os.path.samefile(part, folder) for part in (resolved, *resolved.parents))


def write_report(path: Path, content: Any) -> None:
    """Write a JSON value with `write_text`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; a symbolic link stays a link, and a pipe or device is written directly.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with atomic_file(path.resolve()) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
