"""The fused operators, public, for this model and for any other: ARCHITECTURE §4.

Each is a `torch.library` custom op (`torch.ops.glimodern.*`) with a fake and autograd, so it works under autograd,
`torch.compile` and `torch.export`. Backends: Triton on CUDA, C++ on CPUs, plain PyTorch (`glimodern.reference`)
elsewhere. `backend_info` says which runs and why; `use_backend` forces one. Where neither gradients nor a compiler ask
for the registered op, the public functions call the backend directly.
"""

from ._add_layer_norm import add_layer_norm
from ._attention_varlen import attention_varlen
from ._chain import Chain, Columns
from ._dropout import dropout
from ._geglu import geglu
from ._head import head_entities, head_scores
from ._linear_packed import PackedWeight, linear_packed
from ._rotary import rotary
from ._select_spans import select_spans
from ._span import split_scores
from ._span_entities import SpanEntities, span_entities
from ._span_loss import span_loss
from ._span_scores import span_scores
from ._span_vectors import span_vectors
from .dispatch import backend_info, use_backend

__all__ = [
    "add_layer_norm",
    "attention_varlen",
    "backend_info",
    "Chain",
    "Columns",
    "dropout",
    "geglu",
    "head_entities",
    "head_scores",
    "linear_packed",
    "PackedWeight",
    "rotary",
    "select_spans",
    "span_entities",
    "span_loss",
    "span_scores",
    "span_vectors",
    "SpanEntities",
    "split_scores",
    "use_backend",
]
