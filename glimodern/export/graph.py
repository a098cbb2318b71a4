"""The folded model as modules that are traced: encoder, projection, pooling, LSTM, head, and all logits.

Both layouts become packed rows first. So linear layers see no padding, and attention, the LSTM and the products with
the types see each text as a row of a padded tensor (`layers.padded_attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glimodern.layers.padded_attention import PaddedPacking, PaddedTexts

from .heads import label_rows, padded_logits, split_label_rows, type_rows
from .layouts import Part, inputs_of

if TYPE_CHECKING:
    from glimodern.network.label_encoder import LabelEncoder
    from glimodern.network.span_network import SpanNetwork


class Rows:
    """What a layout makes of its inputs.

    tokens, words, types: the texts' rows of each; types may be one row that all texts have. input_ids: int64 [tokens].
    word_rows: int64 [words], the token whose vector is the word's, -1 for none. type_rows: int64 [types], the token
    whose vector is the type's; None for a bi-encoder. folded: `heads.label_rows` of a bi-encoder's types [types, ·].
    subtoken_rows, subtoken_words: int64 [subtokens], the tokens of words and the words that they belong to; None unless
    sub-tokens are pooled.
    """

    def __init__(
        self, tokens: PaddedTexts, words: PaddedTexts, types: PaddedTexts, input_ids: Tensor, word_rows: Tensor,
        type_rows: Tensor | None = None, folded: Tensor | None = None, subtoken_rows: Tensor | None = None,
        subtoken_words: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.words, self.types = tokens, words, types
        self.input_ids, self.word_rows, self.type_rows, self.folded = input_ids, word_rows, type_rows, folded
        self.subtoken_rows, self.subtoken_words = subtoken_rows, subtoken_words


class TracedGraph(nn.Module):
    """Base of the graphs. inputs: their names, in the order of `forward`'s arguments."""

    part: Part

    def __init__(self, network: SpanNetwork) -> None:
        super().__init__()
        self.network = network
        self.inputs = list(inputs_of(self.part, network.config))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters that the graph holds, in fp32."""
        return 4 * sum(parameter.numel() for module in self._modules_used() for parameter in module.parameters())

    def _modules_used(self) -> list[nn.Module]:
        return [self.network]

    def _label_rows(self, input_ids: Tensor, labels: PaddedTexts) -> Tensor:
        """Compute `heads.label_rows` of labels. input_ids: int64 [tokens]. labels: their tokens."""
        encoder = cast("LabelEncoder", self.network.label_encoder)
        hidden = labels.pad(encoder.encoder.encode(input_ids, PaddedPacking(labels), None))
        sums = hidden.masked_fill(~labels.inside[..., None], 0.0).sum(1)
        means = sums / labels.inside.sum(1, keepdim=True).clamp(min=1)
        return label_rows(self.network.head, encoder.projection(means))


class LabelGraph(TracedGraph):
    """The label graph of a bi-encoder in the layout "packed": labels' tokens in, the head's rows of each label out."""

    part = "labels"

    def _modules_used(self) -> list[nn.Module]:
        return [cast(nn.Module, self.network.label_encoder), self.network.head]

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        offsets = cu_seqlens.long()
        return self._label_rows(input_ids, PaddedTexts.of_lengths(offsets[1:] - offsets[:-1]))


class FoldedModel(TracedGraph):
    """Base of the graphs of whole models: rows in, logits out."""

    def __init__(self, network: SpanNetwork) -> None:
        super().__init__(network)
        self.pooling = network.config.subtoken_pooling

    @property
    def pooled(self) -> bool:
        return self.pooling in ("mean", "max")

    def logits(self, rows: Rows) -> Tensor:
        """Compute the logits of spans or words, -inf outside of a text's words, spans and types."""
        head = self.network.head
        words, prompts = self._vectors(rows)
        if self.network.rnn is not None and self.network.label_encoder is None:
            words = self._run_lstm(self.network.rnn, words, rows.words)
        folded = type_rows(head, prompts) if rows.folded is None else split_label_rows(head, rows.folded)
        return padded_logits(head, words, folded, rows.words, rows.types)

    def _vectors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Compute word vectors [words, d] and type prompts [types, d], none of a bi-encoder."""
        network = self.network
        tokens = rows.word_rows.clamp(min=0) if rows.subtoken_rows is None else rows.subtoken_rows
        chosen = tokens if rows.type_rows is None else torch.cat([tokens, rows.type_rows])
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
    them: span_idx tells their number only. A span is left out where span_mask says so. All labels of a bi-encoder are
    types of every text.
    """

    part = "padded"

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.inputs, inputs, strict=True))
        input_ids, words_mask, lengths = given["input_ids"], given["words_mask"], given["text_lengths"][:, 0]
        config = self.network.config
        inside = given["attention_mask"] > 0
        tokens = PaddedTexts.of(inside)
        if config.any_width:
            words = PaddedTexts.of_lengths(lengths)
        else:
            longest = given["span_idx"].shape[1] // config.max_width
            words = PaddedTexts.of(torch.arange(longest, device=input_ids.device)[None] < lengths[:, None])
        longest = words.inside.shape[1]
        counted = torch.where(inside & (words_mask <= longest), words_mask, 0)  # 1 and up; 0: in no word
        places = torch.full((input_ids.shape[0], longest + 1), -1, dtype=torch.int64, device=input_ids.device)
        word_rows = words.pack(places.scatter(1, counted, tokens.padded)[:, 1:, None]).squeeze(1)
        types, type_tokens, folded = self._types(given, tokens)
        rows = Rows(tokens, words, types, tokens.pack(input_ids[..., None]).squeeze(1), word_rows, type_tokens, folded)
        if self.pooled:
            index = F.pad(words.padded, (1, 0)).gather(1, counted)
            chosen = tokens.pack(counted[..., None]).squeeze(1).nonzero().squeeze(1)
            rows.subtoken_rows = chosen
            rows.subtoken_words = tokens.pack(index[..., None]).squeeze(1).index_select(0, chosen)
        logits = self.logits(rows)
        if config.any_width:
            return logits
        return logits.masked_fill(~given["span_mask"].view(logits.shape[:3])[..., None], -torch.inf)

    def _types(self, given: dict[str, Tensor], tokens: PaddedTexts) -> tuple[PaddedTexts, Tensor | None, Tensor | None]:
        """Return the texts' types, and either the tokens of their vectors or their `heads.label_rows`."""
        if self.network.label_encoder is not None:
            mask = given["labels_attention_mask"] > 0
            labels = PaddedTexts.of(mask)
            ids = labels.pack(given["labels_input_ids"][..., None]).squeeze(1)
            every = torch.ones_like(mask[:, 0])[None]  # one row of types, which all texts have
            return PaddedTexts.of(every), None, self._label_rows(ids, labels)
        config = self.network.config
        marked = tokens.inside & (given["input_ids"] == config.class_token_index)
        type_tokens = tokens.pack(marked[..., None]).squeeze(1).nonzero().squeeze(1)
        if not config.embed_ent_token:
            type_tokens = type_tokens + 1
        return PaddedTexts.of_lengths(marked.long().sum(1)), type_tokens, None


class PackedGraph(FoldedModel):
    """The graph of the layout "packed", with the arrays of a packed batch.

    subtoken_word: the word of each of subtoken_index, counted in the batch. A bi-encoder's type_index names rows of
    label_rows, the results of its label graph.
    """

    part = "packed"

    def _modules_used(self) -> list[nn.Module]:
        network = self.network
        return [module for module in network.children() if module is not network.label_encoder]

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.inputs, inputs, strict=True))
        offsets = (given[name].long() for name in ("cu_seqlens", "cu_words", "cu_types"))
        tokens, words, types = (PaddedTexts.of_lengths(cu[1:] - cu[:-1]) for cu in offsets)
        type_index: Tensor | None = given["type_index"]
        folded = None
        if self.network.label_encoder is not None:
            folded, type_index = given["label_rows"].index_select(0, given["type_index"]), None
        rows = Rows(
            tokens, words, types, given["input_ids"], given["word_index"], type_index, folded,
            given.get("subtoken_index"), given.get("subtoken_word"),
        )  # fmt: skip
        return self.logits(rows)


def graphs_of(network: SpanNetwork, layout: str) -> list[TracedGraph]:
    """Return the graphs of a model in a layout: one, or the model's and the label graph."""
    if layout == "padded":
        return [PaddedGraph(network)]
    return [PackedGraph(network), *([LabelGraph(network)] if network.label_encoder is not None else [])]
