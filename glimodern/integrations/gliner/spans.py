"""The replacement of gliner's span scoring: from a collated batch to the logits that gliner decodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import ops
from glimodern.encoder import Encoder
from glimodern.inference.budget import activation_bytes, resolve_batch_tokens
from glimodern.ops.dispatch import warn_once
from glimodern.runtime.forks import keep_to_own_threads

from .encoder import starts_left_and_fits, text_bounds
from .shadows import Head, Shadow, build_head, why_plain

Batch = dict[str, Any]  # gliner's collated batch: texts padded to [b, tokens], spans to [b, words * K]

_OUTPUT_KEY = "glimodern_output"  # the key of a batch's output that `LookAhead` has computed


class _Texts(NamedTuple):
    """A packed batch of N tokens, n words and m labels.

    ids: int64 [N]. word_rows: int64 [n], each word's token; -1 for a word without a token, whose vector is zero.
    label_rows: int64 [m], each label's token. tokens, words, labels: their number in each text.
    """

    ids: Tensor
    word_rows: Tensor
    label_rows: Tensor
    tokens: list[int]
    words: list[int]
    labels: list[int]


class _Vectors(NamedTuple):
    """Vectors of packed texts.

    words: [n, d]. labels: [m, d]. word_counts, label_counts: their number in each text. label_mask: gliner's own mask
    of the labels [b, max labels], or None.
    """

    words: Tensor
    labels: Tensor
    word_counts: list[int]
    label_counts: list[int]
    label_mask: Tensor | None = None


class SpanForward:
    """Replaces the forward pass of gliner's span models."""

    def __init__(self, core: Any, encoder: Shadow[Encoder] | None, pack: bool) -> None:
        from gliner.modeling.outputs import GLiNERBaseOutput

        self.core, self.encoder = core, encoder
        self.output: Any = GLiNERBaseOutput
        parts = [core.span_rep_layer, core.prompt_rep_layer]
        if hasattr(core.token_rep_layer, "projection"):
            parts.append(core.token_rep_layer.projection)
        self.shadow: Shadow[Head] = Shadow(build_head, core, parts, pack)

    def forward(self, *args: Any, **batch: Any) -> Any:
        """Return gliner's output object for a batch, by gliner's own forward pass if this one does not apply."""
        computed = batch.pop(_OUTPUT_KEY, None)
        if computed is not None:
            return computed
        outputs = "positional arguments" if args else self.run([batch])
        if isinstance(outputs, str):
            warn_once(f"accelerate_gliner: gliner's own span head runs: {outputs}")
            return type(self.core).forward(self.core, *args, **batch)
        return outputs[0]

    def run(self, batches: Sequence[Batch]) -> list[Any] | str:
        """Compute the outputs of batches, or return the reason why gliner's own forward pass must run.

        The batches are computed together if the encoder is this package's.
        """
        if any(batch.get("labels") is not None for batch in batches):
            return "a loss is asked for"
        if any(batch.get("return_embeddings") for batch in batches):
            return "span vectors are asked for"
        head = why_plain(self.core) or self.shadow.current()
        if isinstance(head, str):
            return head
        if not all(map(self._has_all_spans, batches)):
            return "the batch has spans of its own"
        encoder = self.encoder.current() if self.encoder is not None else "none"
        texts = [None if isinstance(encoder, str) else self._read(batch, encoder) for batch in batches]
        if isinstance(encoder, str) or any(text is None for text in texts):
            return [self._scored(head, [batch], self._represent(batch))[0] for batch in batches]
        return self._scored(head, batches, self._encode(head, encoder, [text for text in texts if text is not None]))

    def _has_all_spans(self, batch: Batch) -> bool:
        """Whether span_idx [b, L * K, 2] and span_mask are gliner's defaults: entry (i, k) is the words i to i + k."""
        lengths, spans, mask = batch["text_lengths"].view(-1), batch["span_idx"], batch["span_mask"]
        width = self.core.config.max_width
        words = spans.shape[1] // width
        starts = torch.arange(words, device=spans.device)[:, None].expand(words, width)
        ends = starts + torch.arange(width, device=spans.device)
        inside = ends < lengths[:, None, None]
        if int(lengths.max()) > words or not torch.equal(mask.bool().view(inside.shape), inside):
            return False
        found = spans.view(len(lengths), words, width, 2)[inside]
        return torch.equal(found, torch.stack([starts, ends], -1).expand(len(lengths), -1, -1, -1)[inside])

    def _read(self, batch: Batch, encoder: Encoder) -> _Texts | None:
        """Pack a collated batch.

        Returns None if a word's or label's vector is not that of one token, or if the encoder cannot take the batch.
        """
        config = self.core.config
        if getattr(config, "precomputed_prompts_mode", False) or hasattr(self.core, "rnn"):
            return None
        if type(self.core).__name__ != "UniEncoderSpanModel" or batch.get("pair_attention_mask") is not None:
            return None
        if getattr(config, "subtoken_pooling", "first") not in ("first", "last"):
            return None
        inside, tokens, words = batch["attention_mask"].bool(), batch["attention_mask"].sum(1), batch["text_lengths"]
        if not starts_left_and_fits(encoder, inside, tokens):
            return None
        words = words.view(-1)
        ids, word = batch["input_ids"][inside], batch["words_mask"][inside]
        text = torch.repeat_interleave(torch.arange(len(tokens), device=ids.device), tokens)
        row = torch.nonzero(word > 0)[:, 0]
        first_words = words.cumsum(0) - words
        word_rows = row.new_full((int(words.sum()),), -1)
        word_rows[first_words[text[row]] + word[row] - 1] = row
        is_label = ids == config.class_token_index
        label_rows = torch.nonzero(is_label)[:, 0] + (0 if config.embed_ent_token else 1)
        labels = torch.bincount(text[is_label], minlength=len(tokens))
        return _Texts(ids, word_rows, label_rows, tokens.tolist(), words.tolist(), labels.tolist())

    def _encode(self, head: Head, encoder: Encoder, batches: Sequence[_Texts]) -> _Vectors:
        """Compute the vectors of packed batches in one pass of the encoder."""
        word_parts, label_parts, first = [], [], 0
        for part in batches:
            word_parts.append(torch.where(part.word_rows < 0, -1, part.word_rows + first))
            label_parts.append(part.label_rows + first)
            first += len(part.ids)
        word_rows, label_rows = torch.cat(word_parts), torch.cat(label_parts)
        tokens = [length for part in batches for length in part.tokens]
        ids = torch.cat([part.ids for part in batches])
        rows = torch.cat([word_rows.clamp(min=0), label_rows])
        hidden = encoder(ids, text_bounds(tokens, ids.device), max(tokens), rows)
        if head.projection is not None:
            hidden = head.projection(hidden)
        vectors, prompts = hidden.split([len(word_rows), len(label_rows)])
        vectors = vectors.masked_fill((word_rows < 0)[:, None], 0.0)
        return _Vectors(vectors, prompts, [n for b in batches for n in b.words], [m for b in batches for m in b.labels])

    def _represent(self, batch: Batch) -> _Vectors:
        """Compute a batch's vectors by gliner's own `get_representations`.

        It serves any encoder (this package's too, with padding), pooling, the LSTM and bi-encoders.
        """
        names = (
            "input_ids", "attention_mask", "text_lengths", "words_mask", "labels_embeds", "labels_input_ids",
            "labels_attention_mask", "labels_gather_indices", "prompts_embedding_mask", "packing_config",
            "pair_attention_mask", "token_lengths", "word_lengths",
        )  # fmt: skip
        found = self.core.get_representations(**{name: batch[name] for name in names if name in batch})
        prompts = found.prompts_embedding
        lengths = batch["text_lengths"].view(-1).tolist()
        vectors = torch.cat([found.words_embedding[i, :length] for i, length in enumerate(lengths)])
        counts = [prompts.shape[1]] * len(lengths)
        return _Vectors(vectors, prompts.flatten(0, 1), lengths, counts, found.prompts_embedding_mask)

    def _scored(self, head: Head, batches: Sequence[Batch], vectors: _Vectors) -> list[Any]:
        """Build gliner's output object of each batch, padded. The logit of padding is -inf."""
        words, prompts, word_counts, label_counts, label_mask = vectors
        width, device = self.core.config.max_width, words.device
        cu_words, cu_labels = text_bounds(word_counts, device), text_bounds(label_counts, device)
        factors = head.head.factors(words, prompts)
        logits = ops.head_scores(*factors, cu_words, cu_labels, width)
        text_logits = ops.split_scores(logits, cu_words, cu_labels, width)
        text_words, text_types = words.split(word_counts), factors.q.split(label_counts)
        outputs, first = [], 0
        for batch in batches:
            count, length = len(batch["input_ids"]), batch["span_idx"].shape[1] // width
            texts = slice(first, first + count)
            max_labels = max(label_counts[texts], default=0)
            padded_logits = words.new_full((count, length, width, max_labels), -torch.inf, dtype=logits.dtype)
            padded_words = words.new_zeros(count, length, words.shape[1])
            padded_types = factors.q.new_zeros(count, max_labels, factors.q.shape[1])
            for row, (text_logit, word, label) in enumerate(
                zip(text_logits[texts], text_words[texts], text_types[texts], strict=True)
            ):
                padded_logits[row, : len(word), :, : len(label)] = text_logit
                padded_words[row, : len(word)] = word
                padded_types[row, : len(label)] = label
            own_mask = _prefix_mask(label_counts[texts], max_labels, device).long()
            outputs.append(
                self.output(
                    logits=padded_logits,
                    prompts_embedding=padded_types,
                    prompts_embedding_mask=own_mask if label_mask is None else label_mask,
                    words_embedding=padded_words,
                    mask=_prefix_mask(word_counts[texts], length, device),
                )
            )
            first += count
        return outputs


def _prefix_mask(lengths: Sequence[int], max_length: int, device: torch.device) -> Tensor:
    """Build a mask, bool [len(lengths), max_length], that is True in the first `length` columns of each row."""
    return torch.arange(max_length, device=device) < torch.tensor(lengths, device=device)[:, None]


class LookAhead:
    """Replaces `_process_batches`: several batches are computed together, before gliner processes each of them."""

    # Options with which the outputs do not differ from those computed ahead.
    _SUPPORTED = ("return_class_probs", "word_input_spans", "return_label_vectors")

    def __init__(self, gliner: Any, spans: SpanForward) -> None:
        self.gliner, self.spans = gliner, spans

    def process(self, data_loader: Iterable[Batch], *args: Any, **kwargs: Any) -> Any:
        """Call gliner's `_process_batches` on batches that carry their outputs."""
        keep_to_own_threads()  # before gliner's own tensors
        options = [name for name, value in kwargs.items() if value is not None and value is not False]
        batches = self._computed(data_loader) if set(options) <= set(self._SUPPORTED) else data_loader
        return type(self.gliner)._process_batches(self.gliner, batches, *args, **kwargs)

    def _computed(self, data_loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches with their outputs, computed in groups of a token budget."""
        weight = next(self.spans.core.parameters())
        width = self.spans.core.config.hidden_size
        budget = resolve_batch_tokens("auto", weight.device, activation_bytes(weight, width))
        group: list[Batch] = []
        room = budget
        for batch in data_loader:
            tokens = int(batch["attention_mask"].sum())
            if group and tokens > room:
                yield from self._with_outputs(group, weight.device)
                group, room = [], budget
            group.append(batch)
            room -= tokens
        yield from self._with_outputs(group, weight.device)

    @torch.inference_mode()
    def _outputs(self, group: list[Batch], device: torch.device) -> list[Any] | str:
        moved = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in group]
        return self.spans.run(moved) if moved else []

    def _with_outputs(self, group: list[Batch], device: torch.device) -> Iterator[Batch]:
        outputs = self._outputs(group, device)
        for i, batch in enumerate(group):
            yield batch if isinstance(outputs, str) else {**batch, _OUTPUT_KEY: outputs[i]}
