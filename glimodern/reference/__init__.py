"""The oracles: every operator as plain PyTorch, each formula once, in the form a reader checks.

fp64 in -> fp64 out. Nothing here is fast; the kernels are tested against it. This package imports torch only.
"""

from glimodern.reference.attention_varlen import attention_keep, attention_varlen
from glimodern.reference.encoder import add_layer_norm, geglu, rotary
from glimodern.reference.span import (
    dropout,
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

__all__ = [
    "dropout",
    "attention_keep",
    "attention_varlen",
    "add_layer_norm",
    "dropout_keep",
    "dropout_threshold",
    "focal_bce",
    "geglu",
    "loss_of_scores",
    "mix32",
    "rotary",
    "span_hidden",
    "span_loss",
    "span_scores",
    "textbook_scores",
]
