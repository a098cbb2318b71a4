"""gliner's span scores: from a collated batch to the logits that gliner decodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glimodern import ops
from glimodern.encoder import Encoder
from glimodern.inference.stream import activation_bytes, resolve_batch_tokens
from glimodern.ops.dispatch import warn_once
from glimodern.runtime.forks import keep_to_own_threads

from .encoder import starts_left_and_fits, text_bounds
from .shadows import Head, Shadow, build_head, why_plain

Batch = dict[str, Any]  # gliner's, collated: texts padded to [b, tokens], spans to [b, words * K]

_AHEAD = "glimodern_output"  # under this name a batch carries the output that was computed before its turn


class _Texts(NamedTuple):
    """A batch of b texts, N tokens, n words and m labels, packed: ids int64 [N], word_rows int64 [n] (-1: a word
    without a token, whose vector is zero), label_rows int64 [m], and how many of each a text has."""

    ids: Tensor
    word_rows: Tensor
    label_rows: Tensor
    tokens: list[int]
    words: list[int]
    labels: list[int]


class _Vectors(NamedTuple):
    """Of packed texts: word vectors [n, d], label vectors [m, d], how many of either each text has, and gliner's mask
    of the labels [b, most] where it made one."""

    words: Tensor
    labels: Tensor
    word_counts: list[int]
    label_counts: list[int]
    label_mask: Tensor | None = None


class SpanForward:
    """In the place of the forward pass of gliner's span models."""

    def __init__(self, core: Any, encoder: Shadow[Encoder] | None, pack: bool) -> None:
        from gliner.modeling.outputs import GLiNERBaseOutput

        self.core, self.encoder = core, encoder
        self.output: Any = GLiNERBaseOutput
        parts = [core.span_rep_layer, core.prompt_rep_layer]
        if hasattr(core.token_rep_layer, "projection"):
            parts.append(core.token_rep_layer.projection)
        self.shadow: Shadow[Head] = Shadow(build_head, core, parts, pack)

    def forward(self, *args: Any, **batch: Any) -> Any:
        ahead = batch.pop(_AHEAD, None)
        if ahead is not None:
            return ahead
        outputs = "positional arguments" if args else self.run([batch])
        if isinstance(outputs, str):
            warn_once(f"accelerate_gliner: gliner's own span head runs: {outputs}")
            return type(self.core).forward(self.core, *args, **batch)
        return outputs[0]

    def run(self, batches: Sequence[Batch]) -> list[Any] | str:
        """The outputs of batches, computed together where the encoder is ours; or why gliner's own forward must run."""
        if any(batch.get("labels") is not None for batch in batches):
            return "a loss is asked for"
        if any(batch.get("return_embeddings") for batch in batches):
            return "span vectors are asked for"
        made = why_plain(self.core) or self.shadow.current()
        if isinstance(made, str):
            return made
        if not all(map(self._has_all_spans, batches)):
            return "the batch has spans of its own"
        encoder = self.encoder.current() if self.encoder is not None else "none"
        texts = [None if isinstance(encoder, str) else self._read(batch, encoder) for batch in batches]
        if isinstance(encoder, str) or any(text is None for text in texts):
            return [self._scored(made, [batch], self._represent(batch))[0] for batch in batches]
        return self._scored(made, batches, self._encode(made, encoder, [text for text in texts if text is not None]))

    def _has_all_spans(self, batch: Batch) -> bool:
        """Whether span_idx [b, L * K, 2] and span_mask are gliner's own: at place (i, k) the words i to i + k."""
        lengths, spans, mask = batch["text_lengths"].view(-1), batch["span_idx"], batch["span_mask"]
        width = self.core.config.max_width
        words = spans.shape[1] // width
        starts = torch.arange(words, device=spans.device)[:, None].expand(words, width)
        ends = starts + torch.arange(width, device=spans.device)
        wanted = ends < lengths[:, None, None]
        if int(lengths.max()) > words or not torch.equal(mask.bool().view(wanted.shape), wanted):
            return False
        found = spans.view(len(lengths), words, width, 2)[wanted]
        return torch.equal(found, torch.stack([starts, ends], -1).expand(len(lengths), -1, -1, -1)[wanted])

    def _read(self, batch: Batch, encoder: Encoder) -> _Texts | None:
        """None: its words and labels are not at one token each, or the encoder does not take it."""
        config = self.core.config
        other = getattr(config, "precomputed_prompts_mode", False) or hasattr(self.core, "rnn")
        if other or type(self.core).__name__ != "UniEncoderSpanModel" or batch.get("pair_attention_mask") is not None:
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

    def _encode(self, made: Head, encoder: Encoder, texts: Sequence[_Texts]) -> _Vectors:
        word_rows, label_rows, first = [], [], 0
        for part in texts:
            word_rows.append(torch.where(part.word_rows < 0, -1, part.word_rows + first))
            label_rows.append(part.label_rows + first)
            first += len(part.ids)
        of_words, of_labels = torch.cat(word_rows), torch.cat(label_rows)
        tokens = [length for part in texts for length in part.tokens]
        ids = torch.cat([part.ids for part in texts])
        rows = torch.cat([of_words.clamp(min=0), of_labels])
        hidden = encoder(ids, text_bounds(tokens, ids.device), max(tokens), rows)
        if made.projection is not None:
            hidden = made.projection(hidden)
        vectors, prompts = hidden.split([len(of_words), len(of_labels)])
        vectors = vectors.masked_fill((of_words < 0)[:, None], 0.0)
        return _Vectors(vectors, prompts, [n for t in texts for n in t.words], [m for t in texts for m in t.labels])

    def _represent(self, batch: Batch) -> _Vectors:
        """The same by gliner's own `get_representations`: any encoder (ours too, padded), pooling, LSTM, bi-encoder."""
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

    def _scored(self, made: Head, batches: Sequence[Batch], found: _Vectors) -> list[Any]:
        """gliner's output of each batch; a logit of no span or no label is -inf."""
        vectors, prompts, words, labels, label_mask = found
        width, device = self.core.config.max_width, vectors.device
        cu_words, cu_labels = text_bounds(words, device), text_bounds(labels, device)
        factors = made.head.factors(vectors, prompts)
        logits = ops.head_scores(*factors, cu_words, cu_labels, width)
        parts = ops.split_scores(logits, cu_words, cu_labels, width)
        of_words, of_labels = vectors.split(words), factors.q.split(labels)
        outputs, first = [], 0
        for batch in batches:
            count, length = len(batch["input_ids"]), batch["span_idx"].shape[1] // width
            texts = slice(first, first + count)
            most = max(labels[texts], default=0)
            output = vectors.new_full((count, length, width, most), -torch.inf, dtype=logits.dtype)
            padded = vectors.new_zeros(count, length, vectors.shape[1])
            types = factors.q.new_zeros(count, most, factors.q.shape[1])
            for row, (part, vector, label) in enumerate(
                zip(parts[texts], of_words[texts], of_labels[texts], strict=True)
            ):
                output[row, : len(vector), :, : len(label)] = part
                padded[row, : len(vector)] = vector
                types[row, : len(label)] = label
            own_mask = _prefix_mask(labels[texts], most, device).long()
            outputs.append(
                self.output(
                    logits=output,
                    prompts_embedding=types,
                    prompts_embedding_mask=own_mask if label_mask is None else label_mask,
                    words_embedding=padded,
                    mask=_prefix_mask(words[texts], length, device),
                )
            )
            first += count
        return outputs


def _prefix_mask(lengths: Sequence[int], most: int, device: torch.device) -> Tensor:
    return torch.arange(most, device=device) < torch.tensor(lengths, device=device)[:, None]


class LookAhead:
    """In the place of `_process_batches`, which is given batches with their outputs in them."""

    _USUAL = ("return_class_probs", "word_input_spans", "return_label_vectors")

    def __init__(self, gliner: Any, spans: SpanForward) -> None:
        self.gliner, self.spans = gliner, spans

    def process(self, data_loader: Iterable[Batch], *args: Any, **kwargs: Any) -> Any:
        keep_to_own_threads()  # before gliner's own tensors
        asked = [name for name, value in kwargs.items() if value is not None and value is not False]
        batches = self._computed(data_loader) if set(asked) <= set(self._USUAL) else data_loader
        return type(self.gliner)._process_batches(self.gliner, batches, *args, **kwargs)

    def _computed(self, data_loader: Iterable[Batch]) -> Iterator[Batch]:
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
            yield batch if isinstance(outputs, str) else {**batch, _AHEAD: outputs[i]}
