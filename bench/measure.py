"""Shapes and their costs, for the benchmarks of the span operators."""

import math

import torch
from shapes import SpanBatch, SpanCase
from torch import Tensor


def span_batch(texts: int, words: int, types: int, hidden: int, max_width: int) -> SpanBatch:
    """A batch of `texts` equal texts."""
    return SpanCase("bench", (words,) * texts, (types,) * texts, hidden, max_width).build()


def demo_batch(hidden: int = 3072) -> SpanBatch:
    """2,590 words in 64 texts of 40 or 41, 9 types each, K 12."""
    return SpanCase("bench", (41,) * 30 + (40,) * 34, (9,) * 64, hidden, 12).build()


def span_pairs(batch: SpanBatch) -> int:
    """(span, type) pairs inside their texts: each costs 2 H floating-point operations forward and 4 H backward."""
    words, types = batch.cu_words.diff().long(), batch.cu_types.diff().long()
    widths = words.clamp(max=batch.max_width)
    return int(((words * widths - widths * (widths - 1) // 2) * types).sum())


def span_index(batch: SpanBatch) -> Tensor:
    """[texts, longest text * max_width, 2]: first and last word of every span, counted in the text, texts padded; a
    span that leaves its text is (0, 0), as in the public package's batches."""
    lengths = batch.cu_words.diff().long()
    start = torch.arange(int(lengths.max())).repeat_interleave(batch.max_width)
    end = start + torch.arange(batch.max_width).repeat(int(lengths.max()))
    inside = end[None, :, None] < lengths[:, None, None]
    return torch.where(inside, torch.stack([start, end], -1)[None], 0)


def pad_words(rows: Tensor, batch: SpanBatch) -> Tensor:
    """[words, d] -> [texts, longest text, d]."""
    return torch.nn.utils.rnn.pad_sequence(list(rows.split(batch.cu_words.diff().tolist())), batch_first=True)


def ragged_logits(padded: Tensor, batch: SpanBatch) -> Tensor:
    """[texts, longest * max_width, types], the same number of types each -> span_scores' layout."""
    lengths, types = batch.cu_words.diff().long(), padded.shape[-1]
    parts = []
    for row, length in zip(padded, lengths.tolist(), strict=True):
        part = row[: length * batch.max_width].view(length, batch.max_width, types)
        ends = torch.arange(length)[:, None] + torch.arange(batch.max_width)[None, :]
        parts.append(part.masked_fill((ends >= length)[..., None], -math.inf).reshape(-1))
    return torch.cat(parts)
