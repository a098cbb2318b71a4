"""Shapes and their costs, for the benchmarks of the span operators."""

from shapes import SpanBatch, SpanCase


def span_batch(texts: int, words: int, types: int, hidden: int, max_width: int) -> SpanBatch:
    """A batch of `texts` equal texts."""
    return SpanCase("bench", (words,) * texts, (types,) * texts, hidden, max_width).build()


def span_pairs(batch: SpanBatch) -> int:
    """(span, type) pairs inside their texts: each costs 2 H floating-point operations forward and 4 H backward."""
    words, types = batch.cu_words.diff().long(), batch.cu_types.diff().long()
    widths = words.clamp(max=batch.max_width)
    return int(((words * widths - widths * (widths - 1) // 2) * types).sum())
