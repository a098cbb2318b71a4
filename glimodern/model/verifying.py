"""Comparing what a model computes here with the fingerprint that was saved with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from glimodern.checkpoint.fingerprint import (
    FINGERPRINT_FILE,
    SKETCH,
    Computed,
    Fingerprint,
    Sketch,
    Tokens,
    read_fingerprint,
)
from glimodern.files.atomic import current_files

from .fingerprinting import take_fingerprint

if TYPE_CHECKING:
    from .glimodern import GLiModern

_SHOWN = 6  # ids and words of a text in messages
_LEAST = 1e-30  # scale of vectors that are zero
BOUNDS = {"torch.float64": 1e-4, "fp32": 1e-4, "fp16": 0.01, "bf16": 0.1, "int8": 0.3}
"""Largest distance of a stage (`_distance`) from exact arithmetic that rounding in a dtype explains.

About 4 times the largest one measured; that of fp32 40 times, for deeper encoders and other machines. Two fingerprints
may differ by the sum of their dtypes' bounds. Probabilities of the best spans have the same bounds. docs/LOG.md has the
measurements.
"""

_CAUSES = {
    "tokens": "the tokenizer has lost its special tokens, or its files or library have changed{}; copy the tokenizer "
    "that was saved with these weights, or install the versions",
    "hidden states": "the encoder has another rotary base or config, other weights or another transformers{}; copy "
    "config and weights of one save_pretrained, or install the versions",
    "scores": "the head has another config (such as max_width) or other weights, or a kernel is wrong{}; copy config "
    "and weights of one save_pretrained, or run the doctor",
}


class Agreement(NamedTuple):
    """How a model agrees with a saved fingerprint.

    texts: number of texts. dtype: of the saved one. hidden_states, scores: the largest distances.
    """

    texts: int
    dtype: str
    hidden_states: float
    scores: float

    def __str__(self) -> str:
        return (
            f"tokens of {self.texts} texts as saved, hidden states within {self.hidden_states:.1e} and scores within "
            f"{self.scores:.1e} of those saved in {self.dtype}"
        )


M = TypeVar("M", bound="GLiModern")


def verified(model: M, folder: Path, verify: bool) -> M:
    """Return a model that was loaded from a folder; `verify`: after comparing it with the folder's fingerprint."""
    if verify:
        check_fingerprint(model, folder)
    return model


def verify_copy(model: GLiModern, folder: Path) -> None:
    """Verify a model and its copy that was saved in a folder, which is loaded on the model's device.

    The model is compared with the fingerprint of the checkpoint that it was loaded from, if that has one and the
    weights have not changed. Raises as `check_fingerprint`.
    """
    source = None if model.source is None else model.source[1]
    saved = None if source is None else read_fingerprint(current_files(source))
    if source is not None and saved is not None and saved.weights == model.weights_fingerprint:
        check_fingerprint(model, source)
    type(model).from_pretrained(folder, dtype=next(model.parameters()).dtype, device=model.device, verify=True)


def check_fingerprint(model: GLiModern, folder: Path) -> Agreement:
    """Compare what a model computes with the fingerprint in the folder of its checkpoint.

    Raises FileNotFoundError for a folder without a fingerprint. Raises ValueError, with the file, if the fingerprint is
    damaged, incomplete or of other weights, and with the first stage that differs beyond the bounds of the dtypes.
    """
    file = folder / FINGERPRINT_FILE
    saved = read_fingerprint(current_files(folder))
    if saved is None:
        raise FileNotFoundError(
            f"{file}: expected a fingerprint to verify the model by, got no such file; save the model again with "
            "save_pretrained, or load it with verify=False"
        )
    weights = model.weights_fingerprint
    if saved.weights != weights:
        raise ValueError(
            f"{file}: weights: expected {weights}, as of the weights beside it, got {saved.weights}; it was made on "
            "another model or the weights have changed, copy all files of one save_pretrained"
        )
    if saved.problem or not saved.texts or any(text.computed is None for text in saved.texts):
        raise ValueError(
            f"{file}: texts: expected tokens, hidden states and scores, got stages that could not be computed when it "
            f"was saved ({saved.problem}); save the model again where it can be run"
        )
    try:
        return compare(saved, take_fingerprint(model, weights, saved))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def compare(saved: Fingerprint, now: Fingerprint) -> Agreement:
    """Compare two whole fingerprints of the same weights, stage by stage; now: with the texts and spans of `saved`.

    Everything that a text's stages record is compared. Texts, labels and spans are what is asked, the dtypes give the
    bounds, and the versions are named beside a difference: versions may differ where results do not.

    Raises ValueError for the first stage that differs by more than the sum of the dtypes' bounds.
    """
    for fingerprint in (saved, now):
        if fingerprint.dtype not in BOUNDS:
            raise ValueError(f"dtype: expected one of {list(BOUNDS)}, got {fingerprint.dtype!r}; choose another dtype")
    bound = BOUNDS[saved.dtype] + BOUNDS[now.dtype]
    where = f"{bound:g} of those saved (in {saved.dtype}; here in {now.dtype})"
    if difference := _token_difference(saved, now):
        raise _error("tokens", difference, saved, now)
    if now.problem:
        raise ValueError(f"texts: expected a model that can be run, got {now.problem}; run the doctor")
    pairs = [(a.computed, b.computed) for a, b in zip(saved.texts, now.texts, strict=True) if a.computed and b.computed]
    largest = {"hidden states": 0.0, "scores": 0.0}
    for stage in largest:
        for text, (before, after) in enumerate(pairs):
            for name, distance in _distances(stage, before, after):
                if not distance <= bound:  # also true for NaN
                    detail = f"expected the {name} of text {text} within {where}, got a distance of {distance:.2g}"
                    raise _error(stage, detail, saved, now)
                largest[stage] = max(largest[stage], distance)
    return Agreement(len(pairs), saved.dtype, largest["hidden states"], largest["scores"])


def _error(stage: str, difference: str, saved: Fingerprint, now: Fingerprint) -> ValueError:
    """Build the error of a stage, with the packages whose versions differ."""
    there, here = vars(saved.versions), vars(now.versions)
    changed = [f"{name} {there[name]}" for name in there if there[name] != here[name]]
    installed = [f"{name} {here[name]}" for name in there if there[name] != here[name]]
    versions = f" (saved with {', '.join(changed)}; here {', '.join(installed)})" if changed else ""
    return ValueError(f"{stage}: {difference}; {_CAUSES[stage].format(versions)}")


def _token_difference(saved: Fingerprint, now: Fingerprint) -> str:
    """Return what was expected and got of the first text or label whose tokens differ; empty if none differs."""
    if (saved.label_tokens is None) != (now.label_tokens is None):
        kinds = {True: "no tokens of labels, which a uni-encoder reads with the text", False: "tokens of each label"}
        return f"expected {kinds[saved.label_tokens is None]}, got {kinds[now.label_tokens is None]}"
    for label, before, after in zip(saved.labels, saved.label_tokens or (), now.label_tokens or (), strict=False):
        if before != after:
            return f"expected the label {label!r} as the ids {[*before]}, got {[*after]}"
    for text, (a, b) in enumerate(zip(saved.texts, now.texts, strict=True)):
        if a.tokens != b.tokens:
            return f"expected text {text} as {_shown(a.tokens)}, got {_shown(b.tokens)}"
    return ""


def _shown(tokens: Tokens | None) -> str:
    if tokens is None:
        return "no tokens"
    first = ", ".join(map(str, tokens.first[:_SHOWN]))
    words = ", ".join(map(str, tokens.word_index[:_SHOWN]))
    return f"{tokens.count} tokens ({first}, ...; hash {tokens.digest[:8]}) with words at {words}, ..."


def _distances(stage: str, saved: Computed, now: Computed) -> Iterator[tuple[str, float]]:
    """Yield name and distance of each part of a stage of one text."""
    if stage == "hidden states":
        yield "word vectors", _distance(saved.words, now.words, saved.words.rms)
        yield "type vectors", _distance(saved.types, now.types, saved.types.rms)
        return
    # Logits of an untrained head are small differences of large sums, so that their own size is no measure for them.
    yield "logits", _distance(saved.logits, now.logits, max(saved.logits.rms, 1.0))
    for a, b in zip(saved.spans, now.spans, strict=True):
        name = f"probability {a.probability:.3g} of {a.label!r} for the words {a.first} to {a.last}"
        yield name, abs(a.probability - b.probability)


def _distance(saved: Sketch, now: Sketch, scale: float) -> float:
    """Estimate the root mean square of two tensors' difference, as a share of `scale`.

    The difference of their root mean squares is a lower bound of it (the triangle inequality).
    """
    square = sum((a - b) ** 2 for a, b in zip(saved.projections, now.projections, strict=True)) / SKETCH
    return max(math.sqrt(square), abs(saved.rms - now.rms)) / max(scale, _LEAST)
