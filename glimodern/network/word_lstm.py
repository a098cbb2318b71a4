"""The bidirectional LSTM over words of old checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WordLstm(nn.LSTM):
    """The bidirectional LSTM over words that old checkpoints run between encoder and head, for packed batches."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(width, width // 2, num_layers=layers, bidirectional=True, batch_first=True)

    def run_packed(self, words: Tensor, offsets: Sequence[int]) -> Tensor:
        """Run the LSTM over each text: words [n, d] -> [n, d]. offsets: the texts' word offsets [texts + 1]."""
        lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False) if end > start]
        if not lengths:
            return words
        packed = nn.utils.rnn.pack_sequence(words.split(lengths), enforce_sorted=False)
        texts = nn.utils.rnn.unpack_sequence(self(packed)[0])
        return torch.cat(texts)
