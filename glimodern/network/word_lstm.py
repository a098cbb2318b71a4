"""The LSTM over words of old checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WordLstm(nn.LSTM):
    """The bidirectional LSTM over words that old checkpoints put between encoder and head; packed in, packed out."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(width, width // 2, num_layers=layers, bidirectional=True, batch_first=True)

    def run_packed(self, words: Tensor, offsets: Sequence[int]) -> Tensor:
        """words [n, d], offsets [b + 1] of the texts in it -> [n, d]; texts without words take no part."""
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False) if end > start]
        if not lengths:
            return words
        packed = nn.utils.rnn.pack_sequence(words.split(lengths), enforce_sorted=False)
        texts = nn.utils.rnn.unpack_sequence(self(packed)[0])
        return torch.cat(texts)
