"""Model repositories on the Hugging Face hub: resolve a name to a local folder and download its files.

Names are looked up by huggingface_hub: online, or only in its cache with `local_files_only` or the environment
variable HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimodern.display import typed

from .atomic import user_path
from .weights import INDEX_FILE, INT8_FILE, PICKLE_FILE, WEIGHTS_FILE, WEIGHTS_FILES, is_index, read_index

_NAME = re.compile(r"([a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
# The files that loading reads, with an index of shards ("*.json"); sub-folders hold other files, such as ONNX exports.
_FILES = ("*.json", "*.model", "*.txt", WEIGHTS_FILE)


@dataclass(frozen=True)
class HubAccess:
    """Options for looking up a hub name.

    revision: branch, tag or commit.
    cache_dir: cache folder; None: the one of HF_HOME.
    token: an access token, True for the stored one, False for none.
    local_files_only: use only the cache, without network access.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.local_files_only, bool):
            raise TypeError(f"local_files_only: expected True or False, got {typed(self.local_files_only)}")

    def options(self) -> dict[str, Any]:
        """Return the options that are set, as keyword arguments for huggingface_hub and transformers."""
        given = {"revision": self.revision, "cache_dir": self.cache_dir, "token": self.token}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return {**options, "local_files_only": True} if self.local_files_only else options

    def check_folder(self, path: str | os.PathLike[str]) -> None:
        """Raise ValueError if a revision is set; `path` is a local folder, and those have no revisions."""
        if self.revision is not None:
            raise ValueError(
                f"revision: expected None for the local folder {os.fspath(path)!r}, which has no revisions, got "
                f"{self.revision!r}; leave it out, or give a hub name that is not a local folder"
            )

    def missed(self, name: str) -> str:
        """Describe a failed download for an error message: the revision, and which revisions the cache has."""
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        refs = cache / f"models--{name.replace('/', '--')}" / "refs"
        cached = sorted(ref.relative_to(refs).as_posix() for ref in refs.rglob("*") if ref.is_file())
        held = f"its revisions {', '.join(cached)}" if cached else "no revision of it"
        return (
            f"it could not be loaded from the hub at revision {self.revision or constants.DEFAULT_REVISION!r} "
            f"(the cache {cache} has {held})"
        )


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form name or owner/name and is neither a local path nor likely a mistyped one."""
    in_local_folder = "/" in name and Path(name).parent.is_dir()  # probably a mistyped path
    return _NAME.fullmatch(name) is not None and not in_local_folder and not Path(name).exists()


def resolve_folder(path_or_hub_id: str | os.PathLike[str], hub: HubAccess | None = None) -> Path:
    """Return the local folder of a checkpoint: the path itself if it exists, else a snapshot of the hub repository.

    Raises FileNotFoundError if the name is neither or cannot be loaded, and ValueError for a revision of a local
    folder or for a path that is a file.
    """
    hub = hub or HubAccess()
    path = user_path(path_or_hub_id, "path_or_hub_id")
    name = os.fspath(path_or_hub_id)
    if path.is_dir():
        hub.check_folder(path)
        return path
    if path.exists():
        raise ValueError(f"checkpoint {name!r}: expected a folder with gliner_config.json, got a file; give its folder")
    if name.count("/") != 1 or not is_hub_name(name):
        raise FileNotFoundError(f"checkpoint {name!r}: no such folder (and not a hub name of the form owner/name)")
    folder = download_files(name, _FILES, hub, ignored="*/*")
    for file in (INT8_FILE, PICKLE_FILE):
        if not any((folder / preferred).is_file() for preferred in (WEIGHTS_FILE, INDEX_FILE, INT8_FILE)):
            download_files(name, [file], hub, ignored="*/*")
    weights = next((folder / file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if weights is not None and is_index(weights):
        download_files(name, sorted(read_index(weights)), hub, ignored="*/*")
    return folder


def download_files(name: str, patterns: Sequence[str], hub: HubAccess, ignored: str | None = None) -> Path:
    """Download the files of a hub repository that match `patterns` and return its local folder.

    ignored: pattern of files to skip. Raises FileNotFoundError if the repository cannot be loaded.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # with HF_HUB_OFFLINE, huggingface_hub 1.33 still requests the list of a commit's files, which raises
    options = hub.options() | ({"local_files_only": True} if constants.HF_HUB_OFFLINE else {})
    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], ignore_patterns=ignored, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"checkpoint {name!r}: no such folder here, and {hub.missed(name)}: {error}") from error
