"""The fused operators, public, for this model and for any other: ARCHITECTURE §4.

Each is a `torch.library` custom op (`torch.ops.glimodern.*`) with a fake and autograd, so it works under autograd,
`torch.compile` and `torch.export`. Backends: Triton on CUDA, C++ on CPUs, plain PyTorch (`glimodern.reference`)
elsewhere. `backend_info` says which runs and why; `use_backend` forces one. Where neither gradients nor a compiler ask
for the registered op, the public functions call the backend directly.
"""

from glimodern.ops._add_layer_norm import add_layer_norm
from glimodern.ops._attention_varlen import attention_varlen
from glimodern.ops._chain import Chain, Columns
from glimodern.ops._cost import head_entities, head_scores
from glimodern.ops._dropout import dropout
from glimodern.ops._geglu import geglu
from glimodern.ops._linear_packed import PackedWeight, linear_packed
from glimodern.ops._rotary import rotary
from glimodern.ops._select_spans import select_spans
from glimodern.ops._span import split_scores
from glimodern.ops._span_entities import SpanEntities, span_entities
from glimodern.ops._span_loss import span_loss
from glimodern.ops._span_scores import span_scores
from glimodern.ops._span_vectors import span_vectors
from glimodern.ops.dispatch import backend_info, use_backend

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
