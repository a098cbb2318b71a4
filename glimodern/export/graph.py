"""The folded model as modules that are traced: encoder, projection, pooling, LSTM, head, and the logits of all spans.

Both layouts become packed rows first. So linear layers see no padding, and attention, the LSTM and the products with
the types see each text as a row of a padded tensor (`layers.padded_attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimodern.layers.padded_attention import PaddedPacking, PaddedTexts
from glimodern.network.head import SpanHead

if TYPE_CHECKING:
    from glimodern.network.span_network import SpanNetwork


class Rows:
    """What a layout makes of its inputs.

    tokens, words, types: the texts' rows of each. input_ids: int64 [tokens]. word_rows: int64 [words], the token whose
    vector is the word's, -1 for none. type_rows: int64 [types]. subtoken_rows, subtoken_words: int64 [subtokens], the
    tokens of words and the words that they belong to; None unless sub-tokens are pooled.
    """

    def __init__(
        self, tokens: PaddedTexts, words: PaddedTexts, types: PaddedTexts, input_ids: Tensor, word_rows: Tensor,
        type_rows: Tensor, subtoken_rows: Tensor | None = None, subtoken_words: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.words, self.types = tokens, words, types
        self.input_ids, self.word_rows, self.type_rows = input_ids, word_rows, type_rows
        self.subtoken_rows, self.subtoken_words = subtoken_rows, subtoken_words


class FoldedModel(nn.Module):
    """Base of the graphs: rows in, logits out."""

    def __init__(self, network: SpanNetwork) -> None:
        super().__init__()
        self.network = network
        self.max_width = network.config.max_width
        self.pooling = network.config.subtoken_pooling

    @property
    def pooled(self) -> bool:
        return self.pooling in ("mean", "max")

    def logits(self, rows: Rows) -> Tensor:
        """Compute the logits [texts, words, max_width, types], -inf outside of a text's spans and types."""
        words, prompts = self._vectors(rows)
        if self.network.rnn is not None:
            words = self._run_lstm(self.network.rnn, words, rows.words)
        a, b, u, c = cast(SpanHead, self.network.head).fold(words, prompts)
        longest = rows.words.padded.shape[1]
        starts = rows.words.pad(a)
        ends = F.pad(rows.words.pad(b), (0, 0, 0, self.max_width - 1))
        weights = rows.types.pad(u).transpose(1, 2)
        # one width at a time: the hidden values of all spans would take max_width times the memory of a
        widths = [torch.relu(starts + ends[:, k : k + longest]) @ weights for k in range(self.max_width)]
        logits = torch.stack(widths, 2) + rows.types.pad(c[:, None]).transpose(1, 2)[:, None]
        last = F.pad(rows.words.inside, (0, self.max_width - 1))
        inside = torch.stack([last[:, k : k + longest] for k in range(self.max_width)], 2)
        known = inside[..., None] & rows.types.inside[:, None, None]
        return logits.masked_fill(~known, -torch.inf)

    def _vectors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Compute word vectors [words, d] and type prompts [types, d]."""
        network = self.network
        tokens = rows.word_rows.clamp(min=0) if rows.subtoken_rows is None else rows.subtoken_rows
        chosen = torch.cat([tokens, rows.type_rows])
        hidden = network.projection(network.encoder.encode(rows.input_ids, PaddedPacking(rows.tokens), chosen))
        count = tokens.shape[0]
        words, prompts = hidden[:count], hidden[count:]
        if rows.subtoken_words is not None:
            return self._pool(words, rows.subtoken_words, rows.word_rows.shape[0]), prompts
        return words.masked_fill((rows.word_rows < 0)[:, None], 0.0), prompts

    def _pool(self, subtokens: Tensor, words: Tensor, count: int) -> Tensor:
        """Pool sub-token vectors [subtokens, d] into those of their words [count, d]; zero for a word without."""
        index = words[:, None].expand(subtokens.shape)
        counts = subtokens.new_zeros(count).scatter_add(0, words, torch.ones_like(words, dtype=subtokens.dtype))
        if self.pooling == "mean":
            sums = subtokens.new_zeros(count, subtokens.shape[1]).scatter_add(0, index, subtokens)
            return sums / counts.clamp(min=1)[:, None]
        least = subtokens.new_full((count, subtokens.shape[1]), torch.finfo(subtokens.dtype).min)
        largest = least.scatter_reduce(0, index, subtokens, "amax", include_self=True)
        return largest.masked_fill((counts == 0)[:, None], 0.0)

    @staticmethod
    def _run_lstm(lstm: nn.LSTM, words: Tensor, texts: PaddedTexts) -> Tensor:
        lengths = texts.inside.long().sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(texts.pad(words), lengths, batch_first=True, enforce_sorted=False)
        return texts.pack(nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)[0])


class PaddedGraph(FoldedModel):
    """The graph of the layout "padded", with the inputs of the public package's export.

    Spans must be all starts, and for each all widths from 1 to max_width, in order, as every reader of such files gives
    them: span_idx tells their number only. A span is left out where span_mask says so.
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, words_mask: Tensor, text_lengths: Tensor, span_idx: Tensor,
        span_mask: Tensor,
    ) -> Tensor:  # fmt: skip
        config = self.network.config
        inside = attention_mask > 0
        tokens = PaddedTexts.of(inside)
        longest = span_idx.shape[1] // self.max_width
        words = PaddedTexts.of(torch.arange(longest, device=input_ids.device)[None] < text_lengths[:, :1])
        counted = torch.where(inside & (words_mask <= longest), words_mask, 0)  # 1 and up; 0: in no word
        places = torch.full((input_ids.shape[0], longest + 1), -1, dtype=torch.int64, device=input_ids.device)
        word_rows = words.pack(places.scatter(1, counted, tokens.padded)[:, 1:, None]).squeeze(1)
        marked = inside & (input_ids == config.class_token_index)
        type_rows = tokens.pack(marked[..., None]).squeeze(1).nonzero().squeeze(1)
        types = PaddedTexts.of_lengths(marked.long().sum(1))
        if not config.embed_ent_token:
            type_rows = type_rows + 1
        ids = tokens.pack(input_ids[..., None]).squeeze(1)
        rows = Rows(tokens, words, types, ids, word_rows, type_rows)
        if self.pooled:
            index = F.pad(words.padded, (1, 0)).gather(1, counted)
            chosen = tokens.pack(counted[..., None]).squeeze(1).nonzero().squeeze(1)
            rows.subtoken_rows = chosen
            rows.subtoken_words = tokens.pack(index[..., None]).squeeze(1).index_select(0, chosen)
        logits = self.logits(rows)
        return logits.masked_fill(~span_mask.view(logits.shape[:3])[..., None], -torch.inf)


class PackedGraph(FoldedModel):
    """The graph of the layout "packed", with the arrays of a packed batch.

    subtoken_word: the word of each of subtoken_index, counted in the batch.
    """

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, word_index: Tensor, cu_words: Tensor, type_index: Tensor,
        cu_types: Tensor, subtoken_index: Tensor | None = None, subtoken_word: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        offsets = (cu_seqlens.long(), cu_words.long(), cu_types.long())
        tokens, words, types = (PaddedTexts.of_lengths(cu[1:] - cu[:-1]) for cu in offsets)
        rows = Rows(tokens, words, types, input_ids, word_index, type_index, subtoken_index, subtoken_word)
        return self.logits(rows)
