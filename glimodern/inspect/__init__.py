"""What a model does with one text: shapes at each stage, sub-tokens of words, truncation, spans and what beat them.

`inspect(model, text, labels)` gives an `Inspection`; `python -m glimodern.inspect` prints it, writes it as JSON and
draws it as an HTML page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glimodern import ops
from glimodern.inference.decode import decode_batch
from glimodern.inference.request import Search, check_count, check_string, read_labels
from glimodern.network.eval_mode import eval_replica

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
    """Run one text through the model and keep what a reader of its mistakes wants to see.

    labels: one label set; threshold, flat, multi_label: as in `predict`. top: best spans kept per type; entities are
    kept whatever their rank.
    Raises TypeError and ValueError as `predict` does, and ValueError for a text without words and for no labels.
    """
    threshold, flat, multi_label = Search.checked(threshold, flat, multi_label)
    top = check_count("top", top, "a number of spans")
    (request,) = model.requests(check_string(text, "text"), dict(zip(*read_labels(labels), strict=True))).stream
    names, words, text = list(request.words), request.places, request.text
    asked, prompts = list(request.labels.names), list(request.labels.prompts)
    if not words:
        raise ValueError(f"text: expected at least one word, got {text!r}")
    if not asked:
        raise ValueError("labels: expected at least one type, such as ['person', 'city'], got none")
    batch, max_width = model.packer.pack([names], [prompts]), model.config.max_width
    network = eval_replica(model)  # hooks of its own, which no other thread's texts pass through
    with Watch(network) as watch:
        watch.words(len(words), len(text), model.config.max_len)
        watch.batch(batch)
        moved = batch.to(model.device)
        vectors = network.encode(moved)
        watch.vectors(*vectors)
        factors = network.head.factors(*vectors)
        watch.factors(factors)
        where = (moved.cu_words, moved.cu_types, max_width)
        logits = ops.split_scores(ops.head_scores(*factors, *where), *where)[0].float().cpu()
        found = ops.head_entities(*factors, *where, threshold)
        watch.scores(logits, found, threshold)
    kept = decode_batch(found, batch.cu_words, batch.cu_types, flat=flat, multi_label=multi_label).get(0, [])
    watch.entities(len(kept), flat, multi_label)
    tokens = _tokens(model.packer, batch, names, prompts)
    weight = next(model.parameters())
    return Inspection(
        model={
            "source": None if model.source is None else model.source[0],
            "encoder": model.encoder.config.model_type,
            "packing": model.encoder.packed_reason,
            "span_mode": model.config.span_mode,
            "max_width": max_width,
            "dtype": model.dtype_name,
            "device": str(model.device),
        },
        text=text,
        labels=asked,
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
                "label": asked[kind],
                "score": score,
            }
            for start, end, kind, score in kept
        ],
        types=rank_spans(logits, kept, asked, text, words, threshold, flat=flat, multi_label=multi_label, top=top),
        logits=logits,
    )


def _tokens(packer: Packer, batch: PackedBatch, words: list[str], labels: list[str]) -> list[Token]:
    """The batch's tokens, each with what it stands for."""
    ids: list[int] = batch.input_ids.tolist()
    read = batch.word_index if batch.subtoken_index is None else batch.subtoken_index
    vectors = {*read.tolist(), *batch.type_index.tolist()}
    (body,) = packer.tokenizer.encode_batch([words[: packer.max_words]], is_pretokenized=True, add_special_tokens=False)
    prompt = packer.prompt(labels)
    frame = len(packer.pack([[]], [labels]).input_ids)  # special tokens and prompt
    owners: list[tuple[str, int | None]] = [("special", None)] * packer.tokens_before
    owners += [("prompt", label) for label, count in enumerate(np.diff(prompt.bounds)) for _ in range(count)]
    owners += [("prompt", None)] * (len(prompt.ids) - int(prompt.bounds[-1]))
    owners += [("word", word) for word in body.word_ids[: len(ids) - frame]]
    owners += [("special", None)] * (len(ids) - len(owners))
    return [
        Token(packer.token_name(number), number, part, owner, place in vectors)
        for place, (number, (part, owner)) in enumerate(zip(ids, owners, strict=True))
    ]


def _words(words: Sequence[Any], tokens: list[Token], batch: PackedBatch, packer: Packer) -> list[InspectedWord]:
    """The words with their statuses and places among the tokens."""
    kept = batch.word_index.tolist()
    counts, first = [0] * len(words), [-1] * len(words)
    for place, token in enumerate(tokens):
        if token.part == "word" and token.owner is not None:
            counts[token.owner] += 1
            first[token.owner] = place if first[token.owner] < 0 else first[token.owner]
    whole = [len(text.ids) for text in packer.tokenize([[words[len(kept) - 1].text]])] if kept else []
    result = []
    for i, word in enumerate(words):
        status = "cut" if i >= len(kept) else "missing" if kept[i] < 0 else "read"
        if i + 1 == len(kept) and counts[i] < whole[0]:
            status = "cut short"
        result.append(InspectedWord(word.text, word.start, word.end, status, first[i], counts[i]))
    return result
