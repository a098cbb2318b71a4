"""An exported file in ONNX Runtime: opened, and checked against the config beside it; imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimodern.checkpoint.config import CONFIG_FILE, ModelConfig
from glimodern.display import first_line

from .feeds import Feed
from .layouts import METADATA, Description, Part, inputs_of, output_of


def require_onnxruntime() -> Any:
    """Import onnxruntime. Raises ImportError that names the extra."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "onnxruntime: expected it for exported models, got none installed; install the extra onnx"
        ) from error
    return onnxruntime


class Graph(NamedTuple):
    """An exported graph that runs. output: its name. file: where it was read from."""

    session: Any
    description: Description
    output: str
    file: Path

    def run(self, feed: Feed) -> npt.NDArray[np.float32]:
        """Compute the output."""
        result: npt.NDArray[np.float32]
        (result,) = self.session.run([self.output], feed)
        return result


def open_graph(file: Path, parts: Collection[Part], config: ModelConfig, threads: int | None) -> Graph:
    """Open an exported file. parts: what it may be. config: beside it. threads: of one operator; None: all cores.

    Raises FileNotFoundError, and ValueError for a file that is broken, no export of this package, or of another model
    than the config.
    """
    runtime = require_onnxruntime()
    if not file.is_file():
        what = "the label graph of an exported bi-encoder" if "labels" in parts else "an exported model"
        raise FileNotFoundError(f"{file}: expected {what}, got no such file; run python -m glimodern.export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise ValueError(
            f"{file}: expected an ONNX model, got {file.stat().st_size} bytes that onnxruntime {runtime.__version__} "
            f"cannot read ({first_line(error)}); export the model again"
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(
            f"{file}: metadata: expected a description under {METADATA!r}, got a graph without it, which "
            "glimodern.export has not written; run it in the program that wrote it, or export the model here"
        )
    description = Description.from_json(text, str(file))
    if description.part not in parts:
        raise ValueError(
            f"{file}: part: expected one of {', '.join(map(repr, parts))}, got {description.part!r}; the file was "
            "renamed, export the model again"
        )
    description.check_config(config, str(file.with_name(CONFIG_FILE)), file.name)
    wanted = [*inputs_of(description.part, config)]
    found = [node.name for node in session.get_inputs()]
    if sorted(found) != sorted(wanted):
        raise ValueError(
            f"{file}: inputs: expected {', '.join(wanted)}, as {CONFIG_FILE} and the layout {description.part!r} have, "
            f"got {', '.join(found)}; config and graph are not of one model, export it again"
        )
    (output,) = output_of(description.part, config)
    return Graph(session, description, output, file)


def check_same_model(graph: Graph, labels: Graph) -> None:
    """Raise ValueError unless a label graph is of the same weights as the graph that reads its rows."""
    if graph.description.fingerprint != labels.description.fingerprint:
        raise ValueError(
            f"{labels.file}: fingerprint: expected {graph.description.fingerprint}, as {graph.file.name} beside it "
            f"says, got {labels.description.fingerprint}; the files are not of one model, export it again"
        )
