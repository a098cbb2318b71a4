"""glimodern: zero-shot named entity recognition, GLiNER's span model on ModernBERT, packed and fused.

Importing this package imports no torch. `GLiModern`, `LabelVectors`, `accelerate_gliner` and `ops` are imported on
first access.
"""

from typing import TYPE_CHECKING, Any

from glimodern.version import __version__

__all__ = ["GLiModern", "LabelVectors", "__version__", "accelerate_gliner", "ops"]

if TYPE_CHECKING:
    from glimodern import ops
    from glimodern.inputs.label_vectors import LabelVectors
    from glimodern.integrations.gliner import accelerate_gliner
    from glimodern.model.glimodern import GLiModern

_HOMES = {
    "GLiModern": "model.glimodern",
    "LabelVectors": "inputs.label_vectors",
    "accelerate_gliner": "integrations.gliner",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"glimodern.{_HOMES[name]}"), name)
    if name == "ops":
        return importlib.import_module("glimodern.ops")
    raise AttributeError(f"module 'glimodern' has no attribute {name!r}")
