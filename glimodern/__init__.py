"""glimodern: zero-shot named entity recognition, GLiNER's span model on ModernBERT, packed and fused.

Nothing heavy is imported here; `glimodern.GLiModern` and `glimodern.ops` load when first asked for.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["GLiModern", "LabelVectors", "__version__", "ops"]

if TYPE_CHECKING:
    from glimodern import ops
    from glimodern.labels import LabelVectors
    from glimodern.model import GLiModern


def __getattr__(name: str) -> Any:
    import importlib

    if name == "GLiModern":
        return importlib.import_module("glimodern.model").GLiModern
    if name == "LabelVectors":
        return importlib.import_module("glimodern.labels").LabelVectors
    if name == "ops":
        return importlib.import_module("glimodern.ops")
    raise AttributeError(f"module 'glimodern' has no attribute {name!r}")
