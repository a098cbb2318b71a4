"""Inspection of a model's prediction for one text: shapes, sub-tokens, truncation, spans and their rivals.

`inspect(model, text, labels)` returns an `Inspection`. `python -m glimodern.inspect` prints it, and writes it as JSON
or as an HTML page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glimodern import ops
from glimodern.inference.checks import check_count, check_flag, check_string, check_threshold
from glimodern.inference.decode import decode_texts, text_spans
from glimodern.inference.label_sets import read_labels
from glimodern.network.eval_mode import eval_replica
from glimodern.network.head import SpanHead

from .base import InspectedWord, Inspection, Token
from .spans import Span, TypeSpans, rank_spans
from .stages import Stage, Watch, operators_of

if TYPE_CHECKING:
    from glimodern.inputs.batch import PackedBatch
    from glimodern.inputs.labels import LabelArgument
    from glimodern.inputs.packer import Packer
    from glimodern.model.glimodern import GLiModern

__all__ = ["Inspection", "InspectedWord", "Span", "Stage", "Token", "TypeSpans", "inspect"]


@torch.no_grad()
def inspect(
    model: GLiModern,
    text: str,
    labels: LabelArgument,
    *,
    threshold: float = 0.5,
    flat: bool = True,
    multi_label: bool = False,
    top: int = 5,
) -> Inspection:
    """Predict one text and record the intermediate results that explain the prediction.

    labels: one label set. threshold, flat, multi_label: see `GLiModern.predict`. top: number of best spans to record
    per type; entities are recorded at any rank.

    Raises TypeError and ValueError as `predict` does, and ValueError for a text without words, for no labels and for a
    token-level model.
    """
    threshold = check_threshold(threshold)
    flat, multi_label = check_flag("flat", flat), check_flag("multi_label", multi_label)
    top = check_count("top", top, "a number of spans")
    (request,) = model.requests(check_string(text, "text"), dict(zip(*read_labels(labels), strict=True))).stream
    word_texts, words, text = list(request.words), request.offsets, request.text
    names, prompts = list(request.labels.names), list(request.labels.prompts)
    if not words:
        raise ValueError(f"text: expected at least one word, got {text!r}")
    if not names:
        raise ValueError("labels: expected at least one type, such as ['person', 'city'], got none")
    batch, max_width = model.packer.pack([word_texts], [prompts]), model.config.max_width
    network = eval_replica(model)  # has its own hooks, so that texts of other threads do not pass through them
    head = network.head
    if not isinstance(head, SpanHead):
        raise ValueError(
            f"model: expected a span model, whose spans can be ranked, got span_mode {model.config.span_mode!r}; ask "
            "predict(..., scores='all'), or model.scores for the logits of every word"
        )
    with Watch(network) as watch:
        watch.words(len(words), len(text), model.config.max_len)
        watch.batch(batch)
        moved = batch.to(model.device)
        vectors = network.encode(moved)
        watch.vectors(*vectors)
        factors = head.factors(*vectors)
        watch.factors(factors)
        layout = (moved.cu_words, moved.cu_types, max_width)
        logits = ops.split_scores(ops.head_scores(*factors, *layout), *layout)[0].float().cpu()
        candidates = ops.head_entities(*factors, *layout, threshold)
        watch.scores(logits, candidates, threshold)
    found = text_spans(candidates, batch.cu_words, batch.cu_types)
    kept = decode_texts([found], [len(words)], flat=flat, multi_label=multi_label).get(0, [])
    watch.entities(len(kept), flat, multi_label)
    tokens = _tokens(model.packer, batch, word_texts, prompts)
    weight = next(model.parameters())
    return Inspection(
        model={
            "source": None if model.source is None else model.source[0],
            "encoder": model.encoder.model_type,
            "packing": model.encoder.packed_reason,
            "span_mode": model.config.span_mode,
            "max_width": max_width,
            "dtype": model.dtype_name,
            "device": str(model.device),
        },
        text=text,
        labels=names,
        threshold=threshold,
        flat=flat,
        multi_label=multi_label,
        words=_words(words, tokens, batch, model.packer),
        tokens=tokens,
        words_cut=batch.words_cut[0],
        max_words=model.packer.max_words,
        max_tokens=model.packer.max_tokens,
        stages=watch.stages,
        operators=operators_of(model, weight.dtype, watch.by_vectors),
        entities=[
            {
                "start": words[start].start,
                "end": words[end].end,
                "text": text[words[start].start : words[end].end],
                "label": names[type_id],
                "score": score,
            }
            for start, end, type_id, score in kept
        ],
        types=rank_spans(logits, kept, names, text, words, threshold, flat=flat, multi_label=multi_label, top=top),
        logits=logits,
    )


def _tokens(packer: Packer, batch: PackedBatch, words: list[str], labels: list[str]) -> list[Token]:
    """Describe the tokens of a batch of one text."""
    ids: list[int] = batch.input_ids.tolist()
    word_tokens = batch.word_index if batch.subtoken_index is None else batch.subtoken_index
    vectors = {*word_tokens.tolist(), *batch.type_index.tolist()}
    (body,) = packer.tokenizer.encode_batch([words[: packer.max_words]], is_pretokenized=True, add_special_tokens=False)
    prompt = packer.prompt(labels)
    overhead = len(packer.pack([[]], [labels]).input_ids)  # special tokens and prompt
    owners: list[tuple[str, int | None]] = [("special", None)] * packer.tokens_before
    owners += [("prompt", label) for label, count in enumerate(np.diff(prompt.bounds)) for _ in range(count)]
    owners += [("prompt", None)] * (len(prompt.ids) - int(prompt.bounds[-1]))
    owners += [("word", word) for word in body.word_ids[: len(ids) - overhead]]
    owners += [("special", None)] * (len(ids) - len(owners))
    return [
        Token(packer.token_name(token_id), token_id, part, owner, index in vectors)
        for index, (token_id, (part, owner)) in enumerate(zip(ids, owners, strict=True))
    ]


def _words(words: Sequence[Any], tokens: list[Token], batch: PackedBatch, packer: Packer) -> list[InspectedWord]:
    """Describe the words of a batch of one text: status, and position among the tokens."""
    word_index = batch.word_index.tolist()
    counts, first = [0] * len(words), [-1] * len(words)
    for index, token in enumerate(tokens):
        if token.part == "word" and token.owner is not None:
            counts[token.owner] += 1
            first[token.owner] = index if first[token.owner] < 0 else first[token.owner]
    # Tokens of the last word that is read, if it is not cut short.
    uncut = [len(text.ids) for text in packer.tokenize([[words[len(word_index) - 1].text]])] if word_index else []
    result = []
    for i, word in enumerate(words):
        status = "cut" if i >= len(word_index) else "missing" if word_index[i] < 0 else "read"
        if i + 1 == len(word_index) and counts[i] < uncut[0]:
            status = "cut short"
        result.append(InspectedWord(word.text, word.start, word.end, status, first[i], counts[i]))
    return result
