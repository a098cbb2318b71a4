"""Tracing of a model into an ONNX graph."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glimodern import ops
from glimodern.display import first_line
from glimodern.runtime.ambient import as_in_a_new_process

from .feeds import Feed, feed_of
from .graph import PackedGraph, PaddedGraph
from .layouts import METADATA, OPSETS, OUTPUT, OUTPUT_AXES, Description, layout_of

if TYPE_CHECKING:
    from glimodern.model.glimodern import GLiModern

# Two texts of different lengths and two labels: no size of the batch is 1, which a tracer could take for a constant.
_WORDS = ("Ada met Charles Babbage in London .".split(), "Nothing happened .".split())
_LABELS = ("person", "place")


def check_opset(opset: int) -> None:
    """Raise ValueError for an opset that the graph cannot be written in."""
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ValueError(
            f"opset: expected {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}; the graph needs operators of opset "
            f"{OPSETS[0]}, and PyTorch's tracer writes none beyond {OPSETS[-1]}"
        )


def example_feed(model: GLiModern, description: Description) -> Feed:
    """Return the graph's inputs for two short texts."""
    arrays = model.packer.pack_arrays(model.packer.tokenize(_WORDS), [_LABELS] * len(_WORDS))
    return feed_of(description.layout, arrays, description.max_width)


def trace(model: GLiModern, description: Description, opset: int) -> Any:
    """Return a model in fp32, in eval mode and without packed layers, as an `onnx.ModelProto`.

    Operators run in plain PyTorch meanwhile, in all threads. Raises ValueError for an encoder that cannot be traced.
    """
    import onnx

    axes = layout_of(description.layout).axes(model.config.subtoken_pooling)
    graph = (PaddedGraph if description.layout == "padded" else PackedGraph)(model).eval()
    feed = example_feed(model, description)
    inputs = tuple(torch.from_numpy(feed[name]) for name in axes)
    dynamic = {name: dict(enumerate(names)) for name, names in {**axes, OUTPUT: OUTPUT_AXES}.items()}
    with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
        file = Path(scratch) / "model.onnx"
        with _quietly(), as_in_a_new_process(), ops.use_backend("reference"):
            try:
                torch.onnx.export(
                    graph, inputs, str(file), input_names=list(axes), output_names=[OUTPUT], dynamic_axes=dynamic,
                    opset_version=opset, dynamo=False,
                )  # fmt: skip
            except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
                kind = model.config.encoder_config.get("model_type")
                raise ValueError(
                    f"model: expected an encoder that PyTorch traces into ONNX, got {kind!r} and: {first_line(error)}"
                ) from error
        proto = onnx.load(file)
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA, value=description.to_json())
    return proto


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the warnings of PyTorch's tracer: it is its older one, and reads some sizes as constants.

    What it took for a constant is checked afterwards, on texts of other sizes (`verify`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        yield
