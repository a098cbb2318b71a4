"""glimodern: zero-shot named entity recognition, GLiNER's span model on ModernBERT, packed and fused.

Importing this package imports no torch. `GLiModern`, `AsyncPredictor`, `ops` and the others are imported on first
access.
"""

from typing import TYPE_CHECKING, Any

from glimodern.version import __version__

__all__ = [
    "AsyncPredictor",
    "GLiModern",
    "LabelVectors",
    "OnnxPredictor",
    "QueueFullError",
    "__version__",
    "accelerate_gliner",
    "ops",
]

if TYPE_CHECKING:
    from glimodern import ops
    from glimodern.export.predictor import OnnxPredictor
    from glimodern.inputs.label_vectors import LabelVectors
    from glimodern.integrations.gliner import accelerate_gliner
    from glimodern.model.async_predictor import AsyncPredictor
    from glimodern.model.engine import QueueFullError
    from glimodern.model.glimodern import GLiModern

_HOMES = {
    "AsyncPredictor": "model.async_predictor",
    "GLiModern": "model.glimodern",
    "LabelVectors": "inputs.label_vectors",
    "OnnxPredictor": "export.predictor",
    "QueueFullError": "model.engine",
    "accelerate_gliner": "integrations.gliner",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"glimodern.{_HOMES[name]}"), name)
    if name == "ops":
        return importlib.import_module("glimodern.ops")
    raise AttributeError(f"module 'glimodern' has no attribute {name!r}")
