"""The oracle of span_vectors: the span FFN's second Linear applied, no type in sight."""

import torch
from torch import Tensor

from .span import span_hidden


def span_vectors(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    cu_words: Tensor,
    max_width: int,
    spans: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """S(i, k) = W2 . drop(relu(a_i + b_{i+k})) + b2.

    a, b [n, H], w2 [d, H], b2 [d], cu_words int [texts + 1] -> [n, K, d], zero where i..i+k leaves its text; or, for
    spans int [s, 2], rows (i, k) inside their texts, -> [s, d].
    """
    bounds = cu_words.tolist()
    blocks = []
    for w0, w1 in zip(bounds, bounds[1:], strict=False):
        x = span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)
        ends = torch.arange(w1 - w0, device=a.device)[:, None] + torch.arange(max_width, device=a.device)[None, :]
        blocks.append(torch.where((ends < w1 - w0)[..., None], x @ w2.T + b2, x.new_zeros(())))
    vectors = torch.cat(blocks) if blocks else a.new_zeros(0, max_width, len(w2))
    return vectors if spans is None else vectors[spans[:, 0].long(), spans[:, 1].long()]
