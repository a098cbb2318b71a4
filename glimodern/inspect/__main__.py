"""`python -m glimodern.inspect MODEL "text" --labels a,b,c`: what a model does with a text, stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_file, checkpoint_files, write_report, write_text
from glimodern.display import console
from glimodern.model.glimodern import GLiModern

from . import inspect


@dataclass(frozen=True)
class InspectConfig:
    """Settings of `python -m glimodern.inspect`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    text: tyro.conf.Positional[str]
    """The text to read."""
    asked: cli.LabelOptions = field(default_factory=cli.LabelOptions)
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
    from .terminal import render

    config = tyro.cli(
        Annotated[InspectConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.inspect"
    )
    labels = config.asked.read()
    outputs = {
        name: check_output_file(f"--{name}", file, checkpoint_files(config.model))
        for name, file in (("json", config.json), ("html", config.html))
        if file is not None
    }
    if len(set(outputs.values())) < len(outputs):
        raise ValueError(f"--json, --html: expected two files, got {config.html} for both")
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device)
    found = inspect(
        model, config.text, labels, threshold=config.threshold, flat=config.flat, multi_label=config.multi_label,
        top=config.top,
    )  # fmt: skip
    console().print(render(found))
    if "json" in outputs:
        write_report(outputs["json"], found.to_dict())
    if "html" in outputs:
        write_text(outputs["html"], found.to_html())


if __name__ == "__main__":
    cli.run(main)
