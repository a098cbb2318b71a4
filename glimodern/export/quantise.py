"""Dynamic int8 quantisation of an exported graph, by ONNX Runtime's own tool."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def quantise(proto: Any) -> Any:
    """Return an fp32 graph with int8 weights, a scale for each output channel, as an `onnx.ModelProto`.

    Activations are quantised when the graph runs, with one scale for each matrix product. The embedding table keeps
    fp32, because one scale for all of it would cost entities.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    matrices = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    vectors = [node.name for node in products if node.input[1] not in matrices]  # such as b2, which has one channel
    with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch, _quietly():
        file = Path(scratch) / "model.onnx"
        quantize_dynamic(
            proto, str(file), op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=vectors, per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        quantised = onnx.load(file)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(proto.metadata_props)
    return quantised


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the tool's advice to pre-process the graph, which the root logger prints."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
