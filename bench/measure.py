"""Shapes and their costs, for the benchmarks."""

import torch
from shapes import SpanBatch, SpanCase
from torch import Tensor


def span_batch(texts: int, words: int, types: int, hidden: int, max_width: int) -> SpanBatch:
    """A batch of `texts` equal texts."""
    return SpanCase("bench", (words,) * texts, (types,) * texts, hidden, max_width).build()


def span_pairs(batch: SpanBatch) -> int:
    """(span, type) pairs inside their texts: each costs 2 H floating-point operations forward and 4 H backward."""
    words, types = batch.cu_words.diff().long(), batch.cu_types.diff().long()
    widths = words.clamp(max=batch.max_width)
    return int(((words * widths - widths * (widths - 1) // 2) * types).sum())


def attention_batch(lengths: tuple[int, ...], heads: int, dim: int) -> Tensor:
    """A fused qkv [N, 3, heads, dim]."""
    return torch.randn(sum(lengths), 3, heads, dim, generator=torch.Generator().manual_seed(0))


def attention_pairs(lengths: tuple[int, ...], window: int | None) -> int:
    """(query, key) pairs that see each other: each costs 4 * head_dim FLOPs a head forward and 10 backward."""
    pairs = 0
    for length in lengths:
        reach = length - 1 if window is None else min(window, length - 1)
        pairs += length * (2 * reach + 1) - reach * (reach + 1)
    return pairs
