"""Batches of the span operators, and peers that compute the same logits in plain PyTorch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure import DEVICE
from roofline import Spans
from shapes import SpanBatch, SpanCase
from sides import Function
from torch import Tensor

from glimodern.network.head import SpanHead

H, WIDTH, K = 3072, 768, 12


def even(words: int, texts: int) -> tuple[int, ...]:
    """Lengths of texts that differ by at most one word, so that peers hardly pad."""
    return tuple(words // texts + (n < words % texts) for n in range(texts))


@dataclass(frozen=True)
class SpanSize:
    """Size of a batch: words in all texts, number of texts, types per text."""

    words: int
    texts: int
    types: int
    hidden: int = H
    max_width: int = K

    def __str__(self) -> str:
        texts = "1 text" if self.texts == 1 else f"{self.texts} texts"
        types = "1 type" if self.types == 1 else f"{self.types} types"
        return f"{self.words:,} words in {texts}, {types}, K {self.max_width}, H {self.hidden:,}"

    def batch(self, dtype: torch.dtype = torch.float32) -> SpanBatch:
        case = SpanCase("", even(self.words, self.texts), (self.types,) * self.texts, self.hidden, self.max_width)
        return case.build(dtype=dtype).on(DEVICE)

    def shape(self, dtype: torch.dtype = torch.float32, candidates: int = 0) -> Spans:
        words, types = even(self.words, self.texts), (self.types,) * self.texts
        return Spans(words, types, self.hidden, self.max_width, itemsize=dtype.itemsize, candidates=candidates)


class Padding:
    """Conversion between packed rows and a padded batch [texts, longest]. All texts have the same number of types."""

    def __init__(self, batch: SpanBatch) -> None:
        lengths = batch.cu_words.diff().long()
        position = torch.arange(int(lengths.max()), device=lengths.device)
        self.texts, self.longest, self.max_width = len(lengths), len(position), batch.max_width
        self.real = position < lengths[:, None]
        self.row = torch.where(self.real, batch.cu_words[:-1].long()[:, None] + position, 0)
        end = position[:, None] + torch.arange(batch.max_width, device=lengths.device)
        self.outside = (end >= lengths[:, None, None])[..., None]  # [texts, longest, K, 1]

    def pad(self, x: Tensor) -> Tensor:
        """[words, d] -> [texts, longest, d]."""
        return x.index_select(0, self.row.flatten()).view(self.texts, self.longest, -1)

    def pack(self, logits: Tensor) -> Tensor:
        """[texts, longest, K, types] -> span_scores' layout."""
        return logits.masked_fill(self.outside, float("-inf"))[self.real].flatten()


def stored_hidden(batch: SpanBatch) -> Function:
    """Return span_scores on a padded batch with its hidden tensor [texts, longest, K, H] in memory.

    This is the fold as https://github.com/fastino-ai/GLiNER2/pull/143 proposed it, written from the algebra in
    docs/ARCHITECTURE.md ("The fold"). Its time includes padding and its removal, copies of [words, H] and
    [words, K, types].
    """
    padding = Padding(batch)

    def scores(a: Tensor, b: Tensor, u: Tensor, c: Tensor) -> Tensor:
        ends = F.pad(padding.pad(b), (0, 0, 0, padding.max_width - 1)).unfold(1, padding.max_width, 1)
        hidden = (padding.pad(a)[:, :, None] + ends.transpose(2, 3)).relu_()
        types = u.view(padding.texts, -1, u.shape[1])
        return padding.pack(torch.einsum("blkh,bth->blkt", hidden, types) + c.view(padding.texts, 1, 1, -1))

    return scores


def gliner_layers(head: SpanHead, batch: SpanBatch) -> Function | str:
    """Return (word vectors [n, d], prompts [m, d]) -> logits by the public package's modules with this head's weights.

    The modules are SpanRepLayer (markerV0), the prompt layer, and the einsum of its model.
    """
    try:
        from gliner.modeling.layers import create_projection_layer
        from gliner.modeling.span_rep import SpanRepLayer
    except ImportError:
        return "needs the extra peers (gliner)"
    padding = Padding(batch)
    width, max_width = head.width, batch.max_width
    layer = SpanRepLayer(width, max_width, "markerV0", dropout=0.0)
    prompt_layer = create_projection_layer(width, 0.0)
    parts = {"project_start": head.start, "project_end": head.end, "out_project": head.span}
    for name, module in parts.items():
        getattr(layer.span_rep_layer, name).load_state_dict(module.state_dict())
    prompt_layer.load_state_dict(head.prompt.state_dict())
    layer, prompt_layer = layer.to(DEVICE).eval(), prompt_layer.to(DEVICE).eval()
    start = torch.arange(padding.longest, device=DEVICE)[:, None].expand(-1, max_width)
    spans = torch.stack([start, start + torch.arange(max_width, device=DEVICE)], dim=-1)
    spans = torch.where(padding.outside, 0, spans).flatten(1, 2)  # masked like its collator's: [texts, longest * K, 2]

    def scores(h: Tensor, p: Tensor) -> Tensor:
        vectors = layer(padding.pad(h), spans)
        prompts = prompt_layer(p.view(padding.texts, -1, width))
        return padding.pack(torch.einsum("BLKD,BCD->BLKC", vectors, prompts))

    return scores
