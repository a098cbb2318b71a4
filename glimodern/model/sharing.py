"""Sharing a model: `push_to_hub`, and the model card it writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimodern.checkpoint.config import CONFIG_FILE
from glimodern.checkpoint.folder import FILE_PATTERNS
from glimodern.files.hub import is_hub_name

if TYPE_CHECKING:
    from glimodern.checkpoint.config import ModelConfig

CARD_FILE = "README.md"
_TAGS = ("glimodern", "gliner", "named-entity-recognition", "zero-shot")


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

        Files of an older checkpoint that the new one does not have are removed in the same commit. A repository without
        a README.md gets a model card: how to ask for `labels`, and metadata, to which `metadata` adds (such as license,
        language, datasets). revision: the branch to write to, made if there is none; create_pr:
        propose the commit instead. private: of a repository that is made now; None: as its owner's default.

        Raises TypeError and ValueError for such arguments and for a model in int8, and what huggingface_hub raises
        where the hub refuses.
        """
        from huggingface_hub import HfApi

        from glimodern.inference.request import check_labels
        from glimodern.version import __version__

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
            older = api.file_exists(repository, CONFIG_FILE, revision=revision)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                delete_patterns=[*FILE_PATTERNS] if older else None,
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
