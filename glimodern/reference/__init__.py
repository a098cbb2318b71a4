"""Oracles: every operator in plain PyTorch, each formula once, in the form a reader checks.

fp64 in, fp64 out. Nothing here is fast; the kernels are tested against it. This package imports torch only.
"""

from .attention_varlen import RelativePositions, attention_keep, attention_varlen
from .dropout import dropout, dropout_keep, dropout_threshold, mix32
from .encoder import add_layer_norm, add_rms_norm, geglu, rotary
from .select_spans import select_spans
from .span import (
    focal_bce,
    focal_bce_grad,
    logit_offsets,
    loss_gradient,
    loss_of_scores,
    pairs_inside,
    span_hidden,
    span_loss,
    span_scores,
    textbook_scores,
)
from .span_entities import probability, span_entities
from .span_vectors import span_vectors
from .token_scores import (
    pair_indices,
    pair_offsets,
    textbook_token_scores,
    token_entities,
    token_hidden,
    token_loss,
    token_scores,
    token_targets,
)

__all__ = [
    "RelativePositions",
    "add_layer_norm",
    "add_rms_norm",
    "attention_keep",
    "attention_varlen",
    "dropout",
    "dropout_keep",
    "dropout_threshold",
    "focal_bce",
    "focal_bce_grad",
    "geglu",
    "logit_offsets",
    "loss_gradient",
    "loss_of_scores",
    "mix32",
    "pair_indices",
    "pair_offsets",
    "pairs_inside",
    "probability",
    "rotary",
    "select_spans",
    "span_entities",
    "span_hidden",
    "span_loss",
    "span_scores",
    "span_vectors",
    "textbook_scores",
    "textbook_token_scores",
    "token_entities",
    "token_hidden",
    "token_loss",
    "token_scores",
    "token_targets",
]
