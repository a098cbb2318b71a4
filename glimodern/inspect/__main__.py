"""Command line of inspections: `python -m glimodern.inspect MODEL "text" --labels a,b,c`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_file, checkpoint_files, write_report, write_text
from glimodern.display import console
from glimodern.inputs.words import SplitterName
from glimodern.model.glimodern import GLiModern

from . import inspect


@dataclass(frozen=True)
class InspectConfig:
    """Settings of `python -m glimodern.inspect`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    text: tyro.conf.Positional[str]
    """Text to predict."""
    label_options: cli.LabelOptions = field(default_factory=cli.LabelOptions)
    threshold: float = 0.5
    """Minimum probability of an entity, exclusive."""
    flat: bool = True
    """Find no overlapping entities; otherwise nested entities are allowed."""
    multi_label: bool = False
    """Allow several labels for one span."""
    top: int = 5
    """Number of best spans to show per type."""
    json: str | None = None
    """File to write the inspection to, as JSON."""
    html: str | None = None
    """File to write an HTML page to, with the text, its entities and a heat map per type."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Dtype of the model; auto: bf16 on hardware that multiplies it natively, else fp32."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:N, auto, or another of PyTorch's names."""
    splitter: SplitterName | None = None
    """How texts are split into words, unicode for scripts without spaces; by default as the checkpoint says."""


def main(arguments: Sequence[str] | None = None) -> None:
    from .terminal import render

    config = tyro.cli(
        Annotated[InspectConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.inspect"
    )
    labels = config.label_options.read()
    outputs = {
        name: check_output_file(f"--{name}", file, checkpoint_files(config.model))
        for name, file in (("json", config.json), ("html", config.html))
        if file is not None
    }
    if len(set(outputs.values())) < len(outputs):
        raise ValueError(f"--json, --html: expected two files, got {config.html} for both; name another for one")
    model = GLiModern.from_pretrained(config.model, dtype=config.dtype, device=config.device, splitter=config.splitter)
    inspection = inspect(
        model, config.text, labels, threshold=config.threshold, flat=config.flat, multi_label=config.multi_label,
        top=config.top,
    )  # fmt: skip
    console().print(render(inspection))
    if "json" in outputs:
        write_report(outputs["json"], inspection.to_dict())
    if "html" in outputs:
        write_text(outputs["html"], inspection.to_html())


if __name__ == "__main__":
    cli.run(main)
