"""Sub-tokens' vectors in, word vectors out: public GLiNER's `subtoken_pooling`.

"first" and "last" are one row of the encoder's output a word and need no pooling; "mean" and "max" read all sub-tokens
of a word, which stand one after the other.
"""

import torch
from torch import Tensor


def pool_subtokens(subtokens: Tensor, counts: Tensor, pooling: str) -> Tensor:
    """subtokens [s, d], word after word; counts int64 [n], sub-tokens of each word, sum s -> [n, d].

    pooling: "mean" or "max", elementwise; a word without sub-tokens is zero. The gradient of a maximum that several
    sub-tokens share is divided among them.
    """
    words = torch.segment_reduce(subtokens, pooling, lengths=counts, axis=0, unsafe=True)
    return words.masked_fill((counts == 0)[:, None], 0.0)  # nan and -inf until here
