"""The oracles: every operator as plain PyTorch, each formula once, in the form a reader checks.

fp64 in -> fp64 out. Nothing here is fast; the kernels are tested against it. This package imports torch only.
"""

from glimodern.reference.span import (
    dropout_keep,
    dropout_threshold,
    focal_bce,
    loss_of_scores,
    mix32,
    span_hidden,
    span_loss,
    span_scores,
    textbook_scores,
)
from glimodern.reference.span_entities import probability, span_entities
from glimodern.reference.span_vectors import span_vectors

__all__ = [
    "dropout_keep",
    "dropout_threshold",
    "focal_bce",
    "loss_of_scores",
    "mix32",
    "probability",
    "span_entities",
    "span_hidden",
    "span_loss",
    "span_scores",
    "span_vectors",
    "textbook_scores",
]
