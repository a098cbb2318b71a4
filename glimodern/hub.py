"""Model repositories on the Hugging Face hub: a name to a folder on this disk, a folder to a repository.

A name is looked up as huggingface_hub does it: at the hub, and in its cache alone with `local_files_only` or the
environment variable HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimodern.files import user_path
from glimodern.tensors import INDEX_FILE, PICKLE_FILE, WEIGHTS_FILE, WEIGHTS_FILES, is_index, read_index

if TYPE_CHECKING:
    from glimodern.checkpoint import ModelConfig

CARD_FILE = "README.md"
_TAGS = ("glimodern", "gliner", "named-entity-recognition", "zero-shot")
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


class HubApi:
    """`push_to_hub` of a model that has a config, a source and save_pretrained."""

    config: ModelConfig
    source: tuple[str, Path] | None
    save_pretrained: Callable[..., None]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        labels: Sequence[str] = ("person", "organization", "place"),
        metadata: Mapping[str, Any] | None = None,
        commit_message: str = "Upload a model with glimodern",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what save_pretrained writes, in one commit, to a hub repository, made if there is none; its address.

        A repository without a README.md gets a model card: how to ask for `labels`, and metadata, to which `metadata`
        adds (such as license, language, datasets). revision: the branch to write to, made if there is none; create_pr:
        propose the commit instead. private: of a repository that is made now; None: as its owner's default.

        Raises TypeError and ValueError for such arguments and for a model in int8, and what huggingface_hub raises
        where the hub refuses.
        """
        from huggingface_hub import HfApi

        from glimodern import __version__
        from glimodern.request import check_labels

        asked = check_labels(labels)
        if create_pr and revision is not None:
            raise ValueError(
                f"revision: a pull request is made against the default branch, got {revision!r}; leave it out"
            )
        api = HfApi(token=token, library_name="glimodern", library_version=__version__)
        with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)  # first: what cannot be saved leaves no empty repository behind
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            if not api.file_exists(repository, CARD_FILE, revision=revision):
                more = {**self._base_model(repository), **(metadata or {})}
                (folder / CARD_FILE).write_text(model_card(repository, self.config, asked, more), encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        return str(commit.pr_url or commit.commit_url)

    def _base_model(self, repository: str) -> dict[str, str]:
        """The checkpoint that the model was loaded from, else its encoder, if that is a name at the hub."""
        for name in (self.source[0] if self.source is not None else "", self.config.model_name):
            if name and name != repository and is_hub_name(name):
                return {"base_model": name}
        return {}


def model_card(repo_id: str, config: ModelConfig, labels: list[str], metadata: Mapping[str, Any]) -> str:
    """The text of a repository's README.md: metadata that the hub searches, how to load and ask, what the model is."""
    from huggingface_hub import ModelCardData

    ours: dict[str, Any] = {"library_name": "glimodern", "pipeline_tag": "token-classification"}
    tags = dict.fromkeys([*_TAGS, *metadata.get("tags", ())])
    data = ModelCardData(**{**ours, **metadata, "tags": list(tags)})
    public = (
        "It is in the public GLiNER format: `gliner.GLiNER.from_pretrained` loads it too."
        if config.span_mode != "ffn"
        else 'Its head (`span_mode` "ffn") is known to glimodern alone.'
    )
    return f"""---
{data.to_yaml()}
---

# {repo_id.split("/")[-1]}

Finds named entities of any type you can name, without training for it.

```python
from glimodern import GLiModern

model = GLiModern.from_pretrained("{repo_id}")
for entity in model.predict("Ada Lovelace met Charles Babbage in London.", {labels!r})[0]:
    print(entity["text"], entity["label"], entity["score"])
```

Any other labels can be asked in their place. {public}

| | |
|---|---|
| encoder | {config.encoder_config["model_type"]} |
| head | {config.span_mode}, width {config.hidden_size} |
| longest entity | {config.max_width} words |
| longest text | {config.max_len} words |
"""
