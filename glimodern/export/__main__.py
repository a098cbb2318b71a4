"""Export of a checkpoint to ONNX: `python -m glimodern.export MODEL OUT`.

OUT gets model.onnx, gliner_config.json and the tokenizer; of a bi-encoder, labels.onnx (layout packed) and the labels'
tokenizer too. The exported model is compared with the checkpoint on a dozen built-in sentences before it is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_folder
from glimodern.display import cell, console

from .layouts import DEFAULT_OPSET, Dtype, LayoutName


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `python -m glimodern.export`."""

    model: tyro.conf.Positional[str]
    """Folder or hub name of a checkpoint."""
    out: tyro.conf.Positional[str]
    """Folder to write to: empty, an older export, or not there yet."""
    dtype: Dtype = "fp32"
    """fp32, or int8: weights in int8, activations quantised as the graph runs."""
    layout: LayoutName = "padded"
    """Inputs of the graph: padded, as gliner's own export and its readers have them, or packed, as this package has."""
    opset: int = DEFAULT_OPSET
    """Version of ONNX's operators."""


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[ExportConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.export"
    )
    out = check_output_folder("out", config.out)
    # Imported here, so that wrong arguments fail before this import, which takes seconds.
    from .write import export_model

    written = export_model(config.model, out, dtype=config.dtype, layout=config.layout, opset=config.opset)
    files = ", ".join(map(str, written.files))
    said = f"{files}: {written.bytes / 1e6:.1f} MB, {config.layout}, opset {config.opset}"
    console().print(cell(said), cell(str(written.report)), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
