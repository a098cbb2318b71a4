"""Fused operators, for this model and for any other.

Most are `torch.library` custom ops (`torch.ops.glimodern.*`) with a fake and autograd, so they work under autograd,
`torch.compile` and `torch.export`; docs/operators.md names the exceptions. Backends are Triton on CUDA, C++ on CPUs,
and plain PyTorch (`glimodern.reference`) elsewhere; `backend_info` reports which runs and why, and `use_backend`
forces one. Where neither gradients nor a compiler need the registered op, the public functions call the backend
directly.

Operators: `attention_varlen`, with or without `RelativePositions`, `rotary`, `geglu`, `add_layer_norm`, `add_rms_norm`,
`dropout`; `linear_packed` on a `PackedWeight`, with or without a `LowRank` update, and `Chain`, steps of these without
Python in between. Span models: `span_scores` with `split_scores`, `span_loss`, `span_entities` with `probabilities` and
`select_spans`, `span_vectors`. A span head with a last Linear: `head_scores` and `head_entities`, which fold the types
(`fold_types`) or make span vectors, whichever is cheaper (`vectors_are_cheaper`). Token-level models: `token_scores`
with `split_token_scores`, and `token_entities`. Examples: docs/operators.md.
"""

from glimodern.reference import RelativePositions

from ._add_layer_norm import add_layer_norm, add_rms_norm
from ._attention_varlen import attention_varlen
from ._chain import Chain, Columns
from ._dropout import dropout
from ._geglu import geglu
from ._head import fold_types, head_entities, head_scores, vectors_are_cheaper
from ._linear_packed import PackedWeight, QuantisedWeight, linear_packed
from ._low_rank import LowRank
from ._rotary import rotary
from ._select_spans import select_spans
from ._span import split_scores
from ._span_entities import SpanEntities, probabilities, span_entities
from ._span_loss import span_loss
from ._span_scores import span_scores
from ._span_vectors import span_vectors
from ._token_entities import token_entities
from ._token_scores import split_token_scores, token_scores
from .dispatch import backend_info, use_backend

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention_varlen",
    "backend_info",
    "Chain",
    "Columns",
    "dropout",
    "fold_types",
    "geglu",
    "head_entities",
    "head_scores",
    "linear_packed",
    "LowRank",
    "PackedWeight",
    "probabilities",
    "QuantisedWeight",
    "RelativePositions",
    "rotary",
    "select_spans",
    "span_entities",
    "span_loss",
    "span_scores",
    "span_vectors",
    "SpanEntities",
    "split_scores",
    "split_token_scores",
    "token_entities",
    "token_scores",
    "use_backend",
    "vectors_are_cheaper",
]
