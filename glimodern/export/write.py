"""Writing of an exported model: a folder with the graph, the config and the tokenizer, checked before it is there."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch

from glimodern.checkpoint.calibration_file import CALIBRATION_FILE
from glimodern.checkpoint.config import CONFIG_FILE
from glimodern.checkpoint.folder import public_fields
from glimodern.files.atomic import current_files, replace_files, user_path
from glimodern.files.tokenizer import LABELS_TOKENIZER, LABELS_TOKENIZER_FILES, TOKENIZER_FILES
from glimodern.model.glimodern import GLiModern
from glimodern.model.precision import (
    CANARY_LABELS,
    CANARY_TEXTS,
    LEAST_AGREEMENT,
    Answers,
    PrecisionReport,
    Questions,
    answers,
    compare_answers,
)

from .graph import TracedGraph, graphs_of
from .layouts import DEFAULT_OPSET, LABELS_FILE, METADATA, MODEL_FILE, Dtype, LayoutName, check_layout
from .predictor import OnnxPredictor
from .quantise import input_sizes, quantise
from .session import require_onnxruntime
from .trace import check_opset, describe, feed_for, trace

if TYPE_CHECKING:
    from glimodern.inputs.packer import Packer

_GRAPHS = (MODEL_FILE, LABELS_FILE)
_FILES = (*_GRAPHS, CONFIG_FILE, *TOKENIZER_FILES, *LABELS_TOKENIZER_FILES, CALIBRATION_FILE)
_MOST_BYTES = 2**31  # of a protobuf file
_LARGEST_DIFFERENCE = 1e-4  # of a probability, in fp32


class Exported(NamedTuple):
    """What was written. files: the graphs. report: of them against the checkpoint, over the built-in texts."""

    files: tuple[Path, ...]
    bytes: int
    report: PrecisionReport


def export_model(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: Dtype = "fp32",
    layout: LayoutName = "padded",
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Export a checkpoint to a folder, atomically.

    model: folder or hub name. folder: empty, not there yet, or an older export, which is replaced. dtype: "fp32", or
    "int8", with a warning if the entities found in the built-in texts change by more than 3 %. layout: see `layouts`.

    Raises ImportError without onnx and onnxruntime. Raises ValueError for a checkpoint that ONNX cannot express, for an
    opset that is too old or too new, and for a folder with other files. Then nothing is written.
    """
    require_onnxruntime()
    _require_onnx()
    check_layout(layout)
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype: expected one of {', '.join(map(repr, get_args(Dtype)))}, got {dtype!r}")
    check_opset(opset)
    target = user_path(folder, "out")
    _refuse_other_files(target)
    source = GLiModern.from_pretrained(model, dtype="fp32", trainable=True).eval().requires_grad_(False)
    _check_finite(source)
    graphs = graphs_of(source, layout)
    _check_size(graphs, source.source_name)
    with replace_files(target, _stale, last=MODEL_FILE) as staged:
        _refuse_other_files(target)
        _write(staged, source, {_file_of(graph): _exported(source, graph, dtype, opset) for graph in graphs})
        report = _checked(source, OnnxPredictor.from_pretrained(staged), dtype)
    files = tuple(target / _file_of(graph) for graph in graphs)
    return Exported(files, sum(file.stat().st_size for file in files), report)


def _file_of(graph: TracedGraph) -> str:
    return LABELS_FILE if graph.part == "labels" else MODEL_FILE


def _exported(model: GLiModern, graph: TracedGraph, dtype: Dtype, opset: int) -> Any:
    """Return a graph of a model in a dtype, as an `onnx.ModelProto`."""
    proto = trace(graph, describe(model, graph.part, dtype), opset)
    if dtype == "fp32":
        return proto
    requests = model.requests(CANARY_TEXTS, CANARY_LABELS).stream
    feeds = (feed_for(model, graph.part, [request.words], request.labels.prompts) for request in requests)
    return quantise(proto, input_sizes(proto, feeds))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError("onnx: expected it to export, got none installed; install the extra onnx") from error


def _check_finite(model: GLiModern) -> None:
    """Raise ValueError for weights with NaN or infinity, which int8 would turn into other numbers."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"{model.source_name}: tensor {name}: expected finite weights, got NaN or infinity; the checkpoint is "
                "broken, copy or train it again"
            )


def _check_size(graphs: list[TracedGraph], name: str) -> None:
    """Raise ValueError for a graph that one file does not hold. name: the model's."""
    size = max(graph.parameter_bytes for graph in graphs)
    if size >= _MOST_BYTES:
        raise ValueError(
            f"{name}: expected weights of less than 2 GiB in fp32, which one ONNX file holds, got "
            f"{size / 2**30:.1f} GiB; run it with GLiModern"
        )


def _refuse_other_files(folder: Path) -> None:
    """Raise ValueError for a folder with files, unless this package has exported a model to it and they are that's.

    A link to a folder is no export's: what lies there would be replaced.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"out: expected a folder, got the file {folder}; name another folder")
        return
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_symlink() or not file.is_dir())
    files = sorted(file.as_posix() for file in found if file.parts[0][0] != ".")
    others = [name for name in files if name not in _FILES]
    if files and not others and not _is_export(current_files(folder) / MODEL_FILE):
        others = files
    if LABELS_FILE in files and not others and not _is_export(folder / LABELS_FILE):
        others = [LABELS_FILE]
    if others:
        raise ValueError(
            f"out: expected an empty folder or an older export, got {folder} with {', '.join(others[:3])}; name "
            "another folder"
        )


def _is_export(file: Path) -> bool:
    """Return whether a file is a graph that this package has written, whatever its version."""
    import onnx
    from google.protobuf.message import DecodeError

    if not file.is_file():
        return False
    try:
        proto = onnx.load(file, load_external_data=False)
    except DecodeError:
        return False
    return any(entry.key == METADATA for entry in proto.metadata_props)


def _stale(folder: Path, written: set[str]) -> list[str]:
    return [name for name in _FILES if name not in written and (folder / name).is_file()]


def _write(folder: Path, model: GLiModern, graphs: dict[str, Any]) -> None:
    """Write an export to an empty folder. graphs: `onnx.ModelProto` by file name."""
    import onnx

    for name, proto in graphs.items():
        onnx.save(proto, folder / name)
    text = json.dumps(public_fields(model.config), indent=1, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    model.tokenizer.save_pretrained(folder)
    if model.label_encoder is not None:
        model.label_encoder.tokenizer.save_pretrained(folder / LABELS_TOKENIZER)
    if model.calibration is not None:
        (folder / CALIBRATION_FILE).write_text(model.calibration.to_json(), encoding="utf-8")


def _checked(model: GLiModern, exported: OnnxPredictor, dtype: Dtype) -> PrecisionReport:
    """Compare an exported model with its checkpoint on the built-in texts, whose sizes differ from those traced.

    Raises ValueError if probabilities differ in fp32. Warns if entities differ in int8.
    """
    exact = answers(model, Questions.read(model, None, None))
    ours = _answers(exported)
    report = compare_answers(dtype, ours, exact)
    pairs = zip(ours.probabilities, exact.probabilities, strict=True)
    worst = max(float((one - other).abs().max()) for one, other in pairs)
    if dtype == "fp32" and not worst <= _LARGEST_DIFFERENCE:
        kind = model.config.encoder_config.get("model_type")
        raise ValueError(
            f"{model.source_name}: encoder_config: expected an encoder whose graph computes what GLiModern computes, "
            f"got {kind!r} with probabilities off by {worst:.2g}; run it with GLiModern"
        )
    if dtype == "int8" and report.agreement < LEAST_AGREEMENT:
        warnings.warn(
            f"{model.source_name}: expected at least {100 * LEAST_AGREEMENT:.0f} % agreement, got {report}; compare "
            "both on your own texts, or export in fp32",
            stacklevel=3,
        )
    return report


def _answers(exported: OnnxPredictor) -> Answers:
    """Return an exported model's predictions for the built-in texts."""
    requests = list(exported.requests(CANARY_TEXTS, CANARY_LABELS).stream)
    results = exported.predict_words([request.words for request in requests], CANARY_LABELS, threshold=0.5)
    entities = [[(start, end, label) for start, end, label, _ in result.entities] for result in results]
    packer: Packer[Any] = exported.packer
    scores, probabilities = exported.scores(), []
    for request in requests:
        arrays = packer.pack([request.words], [request.labels.prompts])
        probabilities.append(torch.sigmoid(torch.from_numpy(np.array(scores.logits(arrays)[0]))))
    return Answers(entities, probabilities)
