"""The heads in operations that a tracer records: rows of words and types in, padded logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glimodern.layers.padded_attention import PaddedTexts
from glimodern.network.base_head import Head
from glimodern.network.head import SpanHead
from glimodern.network.token_head import TokenHead


def type_rows(head: Head, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what the logits need of types, from their prompts [m, d].

    u [m, H] and c [m, 1] of a span head; b [m, H] and y [m, d] of a token-level one.
    """
    if isinstance(head, SpanHead):
        _, u, c = head.type_rows(prompts, reused=True)
        return u, c[:, None]
    b, y = head.type_rows(prompts)
    return b, y


def label_rows(head: Head, prompts: Tensor) -> Tensor:
    """Compute `type_rows` side by side, one row a label."""
    return torch.cat(type_rows(head, prompts), 1)


def split_label_rows(head: Head, rows: Tensor) -> Sequence[Tensor]:
    """Return the parts of `label_rows`."""
    last = head.width if isinstance(head, TokenHead) else 1
    return rows[:, :-last], rows[:, -last:]


def padded_logits(
    head: Head, vectors: Tensor, folded: Sequence[Tensor], words: PaddedTexts, types: PaddedTexts
) -> Tensor:
    """Compute the logits of a head, -inf outside of a text's words, spans and types.

    vectors: of words [n, d]. folded: see `type_rows`. words: the texts' words. types: the texts' types, or one row of
    types that all texts have.
    """
    rows = head.word_rows(vectors)
    if isinstance(head, SpanHead):
        return _span_logits((*rows, *folded), words, types, head.max_width)
    return _token_logits(cast(TokenHead, head), (*rows, *folded), words, types)


def _span_logits(rows: Sequence[Tensor], words: PaddedTexts, types: PaddedTexts, max_width: int) -> Tensor:
    """Compute the logits [texts, words, max_width, types]. rows: a, b, u and c of the fold."""
    a, b, u, c = rows
    longest = words.padded.shape[1]
    starts = words.pad(a)
    ends = F.pad(words.pad(b), (0, 0, 0, max_width - 1))
    weights = types.pad(u).transpose(1, 2)
    # one width at a time: the hidden values of all spans would take max_width times the memory of a
    widths = [torch.relu(starts + ends[:, k : k + longest]) @ weights for k in range(max_width)]
    logits = torch.stack(widths, 2) + types.pad(c).transpose(1, 2)[:, None]
    last = F.pad(words.inside, (0, max_width - 1))
    inside = torch.stack([last[:, k : k + longest] for k in range(max_width)], 2)
    known = inside[..., None] & types.inside[:, None, None]
    return logits.masked_fill(~known, -torch.inf)


def _token_logits(head: TokenHead, rows: Sequence[Tensor], words: PaddedTexts, types: PaddedTexts) -> Tensor:
    """Compute the logits [texts, words, types, 3]. rows: a, x, b and y of the head.

    The pairs of a word and a type of its text are packed rows, so that the product with W1p sees no padding.
    """
    a, x, b, y = rows
    known = words.inside[:, :, None] & types.inside[:, None]
    flat = known.flatten()
    places = flat.nonzero().squeeze(1)
    word, type_id = (
        index.expand(known.shape).flatten().index_select(0, places)
        for index in (words.padded[:, :, None], types.padded[:, None])
    )
    w1 = head.pair.get_parameter("0.weight").chunk(3, dim=1)[2]
    products = F.linear(x.index_select(0, word) * y.index_select(0, type_id), w1)
    hidden = torch.relu(products + a.index_select(0, word) + b.index_select(0, type_id))
    pairs = F.linear(hidden, head.pair.get_parameter("3.weight"), head.pair.get_parameter("3.bias"))
    # row 0 is that of all other places
    pairs = torch.cat([pairs.new_full((1, 3), -torch.inf), pairs])
    rows_of_places = torch.where(flat, flat.long().cumsum(0), 0)
    return pairs.index_select(0, rows_of_places).view(*known.shape, 3)
