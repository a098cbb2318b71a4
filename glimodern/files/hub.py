"""Model repositories on the Hugging Face hub: a name to a folder on this disk, a folder to a repository.

A name is looked up as huggingface_hub does it: at the hub, and in its cache alone with `local_files_only` or the
environment variable HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import user_path
from .weights import INDEX_FILE, PICKLE_FILE, WEIGHTS_FILE, WEIGHTS_FILES, is_index, read_index

if TYPE_CHECKING:
    pass
_NAME = re.compile(r"([a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
# What a checkpoint is read from, an index of shards included; not what sub-folders hold, such as ONNX exports.
_FILES = ("*.json", "*.model", "*.txt", WEIGHTS_FILE)


@dataclass(frozen=True)
class HubAccess:
    """How a hub name is looked up. revision: branch, tag or commit; cache_dir: in place of HF_HOME's; token: a user's
    own, True for the stored one, False for none; local_files_only: read the cache, ask nobody."""

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.local_files_only, bool):
            got = f"{type(self.local_files_only).__name__} {self.local_files_only!r}"
            raise TypeError(f"local_files_only: expected True or False, got {got}")

    def options(self) -> dict[str, Any]:
        """Those that are set, as keyword arguments of huggingface_hub and transformers."""
        given = {"revision": self.revision, "cache_dir": self.cache_dir, "token": self.token}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return {**options, "local_files_only": True} if self.local_files_only else options

    def check_folder(self, path: str | os.PathLike[str]) -> None:
        """ValueError if a revision is asked of what is a folder here."""
        if self.revision is not None:
            raise ValueError(
                f"revision: {self.revision!r} was asked of {os.fspath(path)!r}, which is a folder on this machine and "
                "has no revisions; leave it out, or give a hub name that is no folder here"
            )

    def missed(self, name: str) -> str:
        """That a name could not be had, and what the cache has of it."""
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        refs = cache / f"models--{name.replace('/', '--')}" / "refs"
        cached = sorted(ref.relative_to(refs).as_posix() for ref in refs.rglob("*") if ref.is_file())
        return (
            f"the hub did not give it at revision {self.revision or constants.DEFAULT_REVISION!r} (the cache {cache} "
            f"has {'its revisions ' + ', '.join(cached) if cached else 'no revision of it'})"
        )


def is_hub_name(name: str) -> bool:
    """Whether a name can only be a repository at the hub: of the form name or owner/name, and no path here."""
    inside = "/" in name and Path(name).parent.is_dir()  # of a folder here: a path that is mistyped
    return _NAME.fullmatch(name) is not None and not inside and not Path(name).exists()


def resolve_folder(path_or_hub_id: str | os.PathLike[str], hub: HubAccess | None = None) -> Path:
    """The local folder of a checkpoint: the path itself if it exists, else a snapshot of the hub repository.

    Raises FileNotFoundError for what is neither, or cannot be had, and ValueError for a revision of a folder.
    """
    hub = hub or HubAccess()
    path = user_path(path_or_hub_id, "path_or_hub_id")
    name = os.fspath(path_or_hub_id)
    if path.is_dir():
        hub.check_folder(path)
        return path
    if path.exists():
        raise ValueError(f"checkpoint {name!r}: expected a folder with gliner_config.json, got a file")
    if name.count("/") != 1 or not is_hub_name(name):
        raise FileNotFoundError(f"checkpoint {name!r}: no such folder (and not a hub name of the form owner/name)")
    folder = download_files(name, _FILES, hub, ignored="*/*")
    if not any((folder / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE)):
        download_files(name, [PICKLE_FILE], hub, ignored="*/*")
    weights = next((folder / file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if weights is not None and is_index(weights):
        download_files(name, sorted(read_index(weights)), hub, ignored="*/*")
    return folder


def download_files(name: str, patterns: Sequence[str], hub: HubAccess, ignored: str | None = None) -> Path:
    """The local folder of a hub repository, with its files of these patterns. Raises FileNotFoundError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # huggingface_hub 1.33 asks for the list of a commit's files even with HF_HUB_OFFLINE, and then refuses itself
    options = hub.options() | ({"local_files_only": True} if constants.HF_HUB_OFFLINE else {})
    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], ignore_patterns=ignored, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"checkpoint {name!r}: no such folder here, and {hub.missed(name)}: {error}") from error
