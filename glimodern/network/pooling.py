"""Pooling of sub-token vectors into word vectors: public GLiNER's `subtoken_pooling`.

"first" and "last" select one row of the encoder's output per word and need no pooling. "mean" and "max" read all
sub-tokens of a word, which are consecutive.
"""

import torch
from torch import Tensor


def pool_subtokens(subtokens: Tensor, counts: Tensor, pooling: str) -> Tensor:
    """Pool sub-token vectors [s, d], in the order of the words, into word vectors [n, d].

    counts: int64 [n], the number of sub-tokens of each word, with the sum s. pooling: "mean" or "max", elementwise. A
    word without sub-tokens becomes zero. The gradient of a maximum that several sub-tokens share is divided among them.
    """
    words = torch.segment_reduce(subtokens, pooling, lengths=counts, axis=0, unsafe=True)
    return words.masked_fill((counts == 0)[:, None], 0.0)  # segment_reduce gives NaN or -inf for empty words
