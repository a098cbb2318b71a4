"""Computing a model's fingerprint (`glimodern.checkpoint.fingerprint`) without changing the model."""

from __future__ import annotations

import hashlib
import logging
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimodern.checkpoint.fingerprint import (
    FINGERPRINT_FILE,
    SKETCH,
    Computed,
    Fingerprint,
    ScoredSpan,
    Sketch,
    TextPrint,
    Tokens,
    Versions,
)
from glimodern.display import first_line
from glimodern.inputs.words import word_splitter
from glimodern.runtime.ambient import as_in_a_new_process
from glimodern.version import __version__

from .precision import CANARY_LABELS, CANARY_TEXTS

if TYPE_CHECKING:
    from glimodern.inputs.batch import PackedBatch
    from glimodern.network.span_network import SpanNetwork

    from .glimodern import GLiModern

logger = logging.getLogger(__name__)

_FIRST_IDS = 16  # ids of a text that are stored as they are, for messages
_LABELS = 3  # built-in labels that are asked; more would lengthen every text, and so saving
_SPANS = 3  # best spans of a text that are stored
_SIGNS = b"glimodern fingerprint 1"  # seed of the signs; other signs are another format


class _Stages(NamedTuple):
    """Vectors of words [n, d] and types [m, d] and logits (`SpanNetwork.scores`) of each text, on the CPU in fp32."""

    words: list[Tensor]
    types: list[Tensor]
    logits: list[Tensor]


def saved_fingerprint(model: GLiModern, weights: str) -> Fingerprint:
    """Compute the fingerprint to save beside a model's weights. Logs a warning if the model cannot be run.

    weights: `weights_fingerprint` of the weights.
    """
    fingerprint = take_fingerprint(model, weights)
    if fingerprint.problem:
        logger.warning(
            "%s: saved without hidden states and scores in %s, because the model cannot be run: %s",
            model.source_name, FINGERPRINT_FILE, fingerprint.problem,
        )  # fmt: skip
    return fingerprint


def take_fingerprint(model: GLiModern, weights: str, like: Fingerprint | None = None) -> Fingerprint:
    """Compute a model's fingerprint on its device and in its dtype, in eval mode whatever mode the model is in.

    weights: `weights_fingerprint` of the weights. like: take its texts, labels and spans; None: take the built-in
    sentences and labels, and each text's best spans. Random number generators, modes and torch's settings stay as they
    are.

    If the model cannot be run, or computes NaN, the stages without a value are None and `problem` says why.
    """
    words, labels = _canary() if like is None else (tuple(text.words for text in like.texts), like.labels)
    spans: list[tuple[ScoredSpan, ...] | None] = [None] * len(words)
    if like is not None:
        spans = [() if text.computed is None else text.computed.spans for text in like.texts]
    tokens: list[Tokens | None] = [None] * len(words)
    computed: list[Computed | None] = [None] * len(words)
    label_tokens, problem = None, ""
    with as_in_a_new_process():
        try:
            if model.label_encoder is not None:
                label_tokens = tuple(tuple(ids) for ids in model.label_encoder.tokens.ids(labels))
            batch = model.packer.pack(words, [labels] * len(words))
            tokens = [_tokens(batch, text) for text in range(len(words))]
            stages = model.run_in_eval(lambda network: _run(network, batch))
            of_spans = [_of_spans(part, any_width=model.config.any_width) for part in stages.logits]
            computed = [_computed(*parts, labels) for parts in zip(*stages, of_spans, spans, strict=True)]
        except Exception as error:  # any that a user's modules raise: the weights are saved and loaded all the same
            problem = first_line(error) or type(error).__name__
    texts = tuple(TextPrint(*parts) for parts in zip(words, tokens, computed, strict=True))
    return Fingerprint(_versions(), model.dtype_name, weights, labels, label_tokens, texts, problem)


def _canary() -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return the built-in sentences as words, and labels.

    The words are the same for every model, so that no package of another splitter is needed.
    """
    split = word_splitter("whitespace")
    return tuple(tuple(word.text for word in split(text)) for text in CANARY_TEXTS), CANARY_LABELS[:_LABELS]


def _versions() -> Versions:
    import tokenizers
    import transformers

    return Versions(__version__, str(torch.__version__), transformers.__version__, tokenizers.__version__)


def _tokens(batch: PackedBatch, text: int) -> Tokens:
    """Record the tokens of a text of a batch on the CPU."""
    first, end = batch.cu_seqlens[text : text + 2].tolist()
    ids = batch.input_ids[first:end].numpy()
    index = batch.word_index[slice(*batch.cu_words[text : text + 2].tolist())].tolist()
    digest = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
    of_words = tuple(token - first if token >= 0 else -1 for token in index)
    return Tokens(len(ids), digest, tuple(ids[:_FIRST_IDS].tolist()), of_words)


def _run(network: SpanNetwork, batch: PackedBatch) -> _Stages:
    moved = batch.to(network.device)
    words, types = network.encode(moved)
    logits = network.head.logits(network.head.rows(words, types), moved.cu_words, moved.cu_types)
    counts = (batch.cu_words.diff().tolist(), batch.cu_types.diff().tolist())
    parts = (words.split(counts[0]), types.split(counts[1]), logits)
    return _Stages(*([part.float().cpu() for part in stage] for stage in parts))


def _of_spans(logits: Tensor, *, any_width: bool) -> Tensor:
    """Return the logits of spans [words, widths, types]; of a token-level model, those of one word."""
    return logits.amin(-1)[:, None] if any_width else logits


def _computed(
    words: Tensor,
    types: Tensor,
    logits: Tensor,
    of_spans: Tensor,
    spans: tuple[ScoredSpan, ...] | None,
    labels: tuple[str, ...],
) -> Computed:
    """Record what was computed of a text. spans: score these, NaN outside of `of_spans`; None: the best ones."""
    inside = logits[~logits.isneginf()]
    sketches = _sketch("word vectors", words), _sketch("type vectors", types), _sketch("logits", inside)
    probabilities = of_spans.double().sigmoid().numpy()
    if spans is None:
        best = np.argsort(-probabilities, axis=None, kind="stable")[:_SPANS]
        rows = np.stack(np.unravel_index(best, probabilities.shape), 1).tolist()
    else:
        rows = [[span.first, span.last - span.first, labels.index(span.label)] for span in spans]
    scored = []
    for first, width, label in rows:
        within = first < probabilities.shape[0] and width < probabilities.shape[1]
        probability = _short(float(probabilities[first, width, label])) if within else math.nan
        scored.append(ScoredSpan(first, first + width, labels[label], probability))
    return Computed(*sketches, tuple(scored))


def _sketch(name: str, x: Tensor) -> Sketch:
    """Sketch a tensor (`checkpoint.fingerprint`). name: its name in the ValueError for values that are not finite."""
    values = x.numpy().astype(np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    size = max(len(values), 1)
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(_SIGNS).digest(len(values)), dtype=np.uint8))
    projections = values @ (bits.reshape(-1, SKETCH) * 2.0 - 1.0) / size**0.5
    return Sketch(_short(float(values @ values / size) ** 0.5), tuple(map(_short, projections.tolist())))


def _short(value: float) -> float:
    """Round to 8 digits, more than fp32 has."""
    return float(f"{value:.8g}")
