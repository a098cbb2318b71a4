"""Tracing of a model into ONNX graphs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glimodern import ops
from glimodern.display import first_line
from glimodern.runtime.ambient import as_in_a_new_process
from glimodern.version import __version__

from .feeds import Feed, feed_of, label_feed, padded_labels
from .graph import LabelGraph, TracedGraph
from .layouts import METADATA, OPSETS, Description, Dtype, Part, inputs_of, output_of, traced_fields

if TYPE_CHECKING:
    from glimodern.model.glimodern import GLiModern

# Two texts of different lengths and two labels: no size of the batch is 1, which a tracer could take for a constant.
_WORDS = ("Ada met Charles Babbage in London .".split(), "Nothing happened .".split())
_LABELS = ("person", "place of birth")


def check_opset(opset: int) -> None:
    """Raise ValueError for an opset that the graph cannot be written in."""
    if isinstance(opset, bool) or not isinstance(opset, Integral) or opset not in OPSETS:
        raise ValueError(
            f"opset: expected {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}; the graph needs operators of opset "
            f"{OPSETS[0]}, and PyTorch's tracer writes none beyond {OPSETS[-1]}"
        )


def describe(model: GLiModern, part: Part, dtype: Dtype) -> Description:
    """Return what a graph of a model says of itself."""
    labels = None if model.label_encoder is None else model.label_encoder.tokens.max_tokens
    return Description(
        part, dtype, traced_fields(model.config), model.packer.max_tokens, labels, model.weights_fingerprint,
        __version__,
    )  # fmt: skip


def feed_for(model: GLiModern, part: Part, texts: Sequence[Sequence[str]], labels: Sequence[str]) -> Feed:
    """Return a graph's inputs for texts given as words, all with the same labels."""
    ids = [] if model.label_encoder is None else model.label_encoder.tokens.ids(labels)
    if part == "labels":
        return label_feed(ids)
    arrays = model.packer.pack_arrays(model.packer.tokenize(texts), [labels] * len(texts))
    feed = feed_of(part, arrays, model.packer.widest_entity)
    if model.label_encoder is None:
        return feed
    if part == "padded":
        return feed | padded_labels(ids)
    with torch.no_grad():
        rows = LabelGraph(model)(*map(torch.from_numpy, label_feed(ids).values()))
    return feed | {"label_rows": rows.numpy()}


def trace(graph: TracedGraph, description: Description, opset: int) -> Any:
    """Return a graph of a model in fp32, in eval mode and without packed layers, as an `onnx.ModelProto`.

    Operators run in plain PyTorch meanwhile, in all threads. Raises ValueError for an encoder that cannot be traced.
    """
    import onnx

    model: GLiModern = graph.network  # type: ignore[assignment]
    inputs, output = inputs_of(graph.part, model.config), output_of(graph.part, model.config)
    dynamic = {name: dict(enumerate(names)) for name, names in {**inputs, **output}.items()}
    with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
        file = Path(scratch) / "model.onnx"
        with _quietly(), as_in_a_new_process(), ops.use_backend("reference"):
            feed = feed_for(model, graph.part, _WORDS, _LABELS)
            try:
                torch.onnx.export(
                    graph.eval(), tuple(torch.from_numpy(feed[name]) for name in inputs), str(file),
                    input_names=list(inputs), output_names=list(output), dynamic_axes=dynamic, opset_version=opset,
                    dynamo=False,
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
