"""The oracle of span_vectors."""

import torch
from torch import Tensor

from .span import span_ends, span_hidden


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
    """S(i, k) = W2 . drop(relu(a_i + b_{i+k})) + b2, the span FFN's second Linear.

    a, b: [n, H]. w2: [d, H]. b2: [d]. cu_words: int [texts + 1]. spans: int [s, 2], rows (i, k) inside their texts.

    Returns [n, K, d], zero where i..i+k leaves its text, or [s, d] for chosen spans.
    """
    offsets = cu_words.tolist()
    blocks = []
    for w0, w1 in zip(offsets, offsets[1:], strict=False):
        x = span_hidden(a[w0:w1], b[w0:w1], max_width, w0, dropout_p, seed)
        inside = span_ends(w1 - w0, max_width, a.device) < w1 - w0
        blocks.append(torch.where(inside[..., None], x @ w2.T + b2, x.new_zeros(())))
    vectors = torch.cat(blocks) if blocks else a.new_zeros(0, max_width, len(w2))
    return vectors if spans is None else vectors[spans[:, 0].long(), spans[:, 1].long()]
