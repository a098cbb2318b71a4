"""Uploading a model to the hub: `push_to_hub`, and the model card that it writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from glimodern.checkpoint.config import CONFIG_FILE, read_config
from glimodern.checkpoint.folder import FILE_PATTERNS
from glimodern.files.hub import is_hub_name

from .precision import PrecisionReport
from .verifying import verify_copy

if TYPE_CHECKING:
    from glimodern.checkpoint.config import ModelConfig

    from .glimodern import GLiModern

CARD_FILE = "README.md"
_TAGS = ("glimodern", "gliner", "named-entity-recognition", "zero-shot")


class HubApi:
    """The method `push_to_hub`, for a class with the attributes config and source and the method save_pretrained."""

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
        dtype: str | None = None,
        force: bool = False,
    ) -> str:
        """Upload the files of save_pretrained to a hub repository in one commit. Returns the commit's address.

        The repository is created if it does not exist. Files of an older checkpoint that the new one does not have are
        removed in the same commit. A repository without a README.md gets a model card, with an example that uses
        `labels`. Before the upload the saved files are loaded, on the model's device, and verified (see
        `from_pretrained`): they must compute what this model does, and this model what its checkpoint's fingerprint
        says.
        metadata: added to the card's metadata, such as license, language or datasets. revision: the branch to write to,
        created if it does not exist. create_pr: open a pull request instead. private: whether a new repository is
        private; None: its owner's default. token: an access token, or whether to send the stored one. dtype, force: see
        `save_pretrained`.

        Raises TypeError and ValueError for invalid arguments, for what save_pretrained refuses and for a model that is
        not verified, and huggingface_hub's errors if the hub refuses the upload.
        """
        from huggingface_hub import HfApi

        from glimodern.inference.label_sets import check_labels
        from glimodern.version import __version__

        card_labels = check_labels(labels)
        if create_pr and revision is not None:
            raise ValueError(
                f"revision: expected None with create_pr, whose base is the default branch, got {revision!r}; leave it "
                "out"
            )
        api = HfApi(token=token, library_name="glimodern", library_version=__version__)
        with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
            folder = Path(scratch) / "model"
            # first, so that a model that cannot be saved leaves no empty repository
            self.save_pretrained(folder, dtype=dtype, force=force)
            verify_copy(cast("GLiModern", self), folder)
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            if not api.file_exists(repository, CARD_FILE, revision=revision):
                fields = {**self._base_model(repository), **(metadata or {})}
                card = model_card(repository, read_config(folder), card_labels, fields)
                (folder / CARD_FILE).write_text(card, encoding="utf-8")
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
        """Metadata of the base model: the model's checkpoint, else its encoder, if that is a hub name."""
        for name in (self.source[0] if self.source is not None else "", self.config.model_name):
            if name and name != repository and is_hub_name(name):
                return {"base_model": name}
        return {}


def model_card(repo_id: str, config: ModelConfig, labels: list[str], metadata: Mapping[str, Any]) -> str:
    """Build the text of a repository's README.md: metadata for the hub's search, an example, and the model's facts."""
    from huggingface_hub import ModelCardData

    ours: dict[str, Any] = {"library_name": "glimodern", "pipeline_tag": "token-classification"}
    tags = dict.fromkeys([*_TAGS, *metadata.get("tags", ())])
    data = ModelCardData(**{**ours, **metadata, "tags": list(tags)})
    public = "It is in the public GLiNER format: `gliner.GLiNER.from_pretrained` loads it too."
    precision = ""
    if config.precision is not None:
        report = PrecisionReport(**config.precision)
        precision = f"\n| weights | {report} |"
        if report.dtype == "int8":
            public = "Only glimodern reads its weights, which are in int8."
    if config.span_mode == "ffn":
        public = 'Only glimodern has its head (`span_mode` "ffn").'
    elif config.words_splitter_type == "unicode":
        public = 'Only glimodern has its splitter (`words_splitter_type` "unicode").'
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

The labels can be replaced by any others. {public}

| | |
|---|---|
| encoder | {config.encoder_config["model_type"]} |
| head | {config.span_mode}, width {config.hidden_size} |
| longest entity | {"any" if config.any_width else config.max_width} words |
| longest text | {config.max_len} words |{precision}
"""
