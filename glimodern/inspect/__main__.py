"""`python -m glimodern.inspect MODEL "text" --labels a,b,c`: what a model does with a text, stage by stage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from glimodern.inspect import inspect
from glimodern.model import GLiModern
from glimodern.request import check_labels


@dataclass(frozen=True)
class InspectConfig:
    """Settings of `python -m glimodern.inspect`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    text: tyro.conf.Positional[str]
    """The text to read."""
    labels: str = ""
    """Types to find, separated by commas."""
    threshold: float = 0.5
    """Least probability of an entity."""
    flat: bool = True
    """No overlapping entities (else nested ones are allowed)."""
    multi_label: bool = False
    """Allow several labels for one span."""
    top: int = 5
    """Best spans to show of each type."""
    json: str | None = None
    """Write what is printed to this file, as data."""
    html: str | None = None
    """Draw text, entities and a heat map of each type to this file."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Arithmetic of the model."""
    device: str = "cpu"
    """Device to run on."""


def main(arguments: Sequence[str] | None = None) -> None:
    from rich.console import Console

    from glimodern.inspect.terminal import render

    config = tyro.cli(
        Annotated[InspectConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.inspect"
    )
    labels = check_labels([label.strip() for label in config.labels.split(",") if label.strip()])
    if not labels:
        raise ValueError('--labels: expected at least one type, such as --labels "person,city", got none')
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    found = inspect(
        model, config.text, labels, threshold=config.threshold, flat=config.flat, multi_label=config.multi_label,
        top=config.top,
    )  # fmt: skip
    Console().print(render(found))
    if config.json is not None:
        Path(config.json).write_text(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if config.html is not None:
        Path(config.html).write_text(found.to_html(), encoding="utf-8")


if __name__ == "__main__":
    main()
