"""An exported file in ONNX Runtime: opened, and checked against the layout that it names; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimodern.display import first_line
from glimodern.inputs.tokens import PackedArrays

from .feeds import feed_of
from .layouts import METADATA, OUTPUT, Description, layout_of


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
    """An exported graph that runs. file: where it was read from."""

    session: Any
    description: Description
    file: Path

    def logits(self, arrays: PackedArrays) -> npt.NDArray[np.float32]:
        """Compute the logits [texts, words, max_width, types] of a packed batch, -inf outside of a text."""
        feed = feed_of(self.description.layout, arrays, self.description.max_width)
        logits: npt.NDArray[np.float32]
        (logits,) = self.session.run([OUTPUT], feed)
        return logits


def open_graph(file: Path, pooling: str, threads: int | None) -> Graph:
    """Open an exported file. pooling: the config's `subtoken_pooling`. threads: of one operator; None: all cores.

    Raises FileNotFoundError, and ValueError for a file that is broken, or no export of this package.
    """
    runtime = require_onnxruntime()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected an exported model, got no such file; run python -m glimodern.export")
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
    wanted = [*layout_of(description.layout).axes(pooling)]
    found = [node.name for node in session.get_inputs()]
    if sorted(found) != sorted(wanted):
        raise ValueError(
            f"{file}: inputs: expected {', '.join(wanted)}, as the layout {description.layout!r} with subtoken_pooling "
            f"{pooling!r} has, got {', '.join(found)}; config and graph are not of one model, export it again"
        )
    return Graph(session, description, file)
