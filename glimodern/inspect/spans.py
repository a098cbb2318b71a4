"""The best spans of each type, what decoding made of them, and what stood against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from glimodern import reference
from glimodern.inference.decode import DecodedEntity
from glimodern.inputs.words import Word

Floats = npt.NDArray[np.float32]
_NOTHING = -1.0


@dataclass(frozen=True)
class Rival:
    """A span and type that cannot be an entity beside the span it stands against; words inclusive."""

    start: int
    end: int
    text: str
    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """start, end: words, inclusive. margin: score - threshold.

    decision: "kept"; "beaten", by `rival`, a kept one that conflicts; "below" the threshold. Where it is not beaten,
    the rival is its runner-up: the strongest span and type that conflicts with it (None: there is none).
    """

    start: int
    end: int
    text: str
    logit: float
    score: float
    margin: float
    decision: str
    rival: Rival | None


@dataclass(frozen=True)
class TypeSpans:
    """A type's spans by falling score; above: how many of all pass the threshold, kept: how many are entities."""

    label: str
    above: int
    kept: int
    spans: list[Span]


def rank_spans(
    logits: Tensor,
    kept: Sequence[DecodedEntity],
    labels: Sequence[str],
    text: str,
    words: Sequence[Word],
    threshold: float,
    *,
    flat: bool,
    multi_label: bool,
    top: int,
) -> list[TypeSpans]:
    """logits fp32 [n, K, m], kept: decode_batch's of the text -> per type its `top` best spans and all kept ones."""
    scores: Floats = reference.probability(logits).numpy()  # what decides which are above the threshold
    _, max_width, types = scores.shape
    decided: Floats = np.full_like(scores, _NOTHING)
    for start, end, kind, _ in kept:
        decided[start, end - start, kind] = scores[start, end - start, kind]
    inside = np.isfinite(logits.numpy()).any(axis=2)
    every: Floats = np.where(inside[..., None], scores, np.float32(_NOTHING))
    anything = _Field(every, flat=flat, multi_label=multi_label)
    winners = _Field(decided, flat=flat, multi_label=multi_label)

    def span_text(start: int, end: int) -> str:
        return text[words[start].start : words[end].end]

    def describe(start: int, width: int, kind: int) -> Span:
        score = float(scores[start, width, kind])
        is_kept = decided[start, width, kind] != _NOTHING
        found = None if is_kept or score <= threshold else winners.strongest(start, width, kind)
        decision = "kept" if is_kept else "below" if found is None else "beaten"
        found = found or anything.strongest(start, width, kind)
        rival = None
        if found is not None:
            first, wide, other, strength = found
            rival = Rival(first, first + wide, span_text(first, first + wide), labels[other], strength)
        return Span(
            start=start,
            end=start + width,
            text=span_text(start, start + width),
            logit=float(logits[start, width, kind]),
            score=score,
            margin=score - threshold,
            decision=decision,
            rival=rival,
        )

    result = []
    for kind in range(types):
        order = np.argsort(-every[..., kind].reshape(-1), kind="stable")
        order = order[inside.reshape(-1)[order]]
        late = [place for place in order[top:].tolist() if decided[..., kind].reshape(-1)[place] != _NOTHING]
        places = [divmod(place, max_width) for place in (*order[:top].tolist(), *late)]
        result.append(
            TypeSpans(
                label=labels[kind],
                above=int((every[..., kind] > threshold).sum()),
                kept=int((decided[..., kind] != _NOTHING).sum()),
                spans=[describe(start, width, kind) for start, width in places],
            )
        )
    return result


class _Field:
    """Scores [n, K, m] of spans and types, _NOTHING where there is none, searched for what conflicts with a span."""

    def __init__(self, scores: Floats, *, flat: bool, multi_label: bool) -> None:
        self.scores = scores
        self.flat = flat
        self.multi_label = multi_label
        self.kind = scores.argmax(axis=2)
        self.best = scores.max(axis=2)

    def strongest(self, start: int, width: int, kind: int) -> tuple[int, int, int, float] | None:
        """(start, width, type, score) of the best that greedy_decode would not keep beside this span and type."""
        count, max_width, _ = self.scores.shape
        end = start + width
        first = max(0, start - max_width + 1)
        starts = np.arange(first, min(count, end + 1))[:, None]
        ends = starts + np.arange(max_width)[None, :]
        conflict: Any = (ends >= start) & ((starts != start) | (ends != end))
        if not self.flat:  # only where they cross
            conflict &= ~((starts >= start) & (ends <= end)) & ~((starts <= start) & (ends >= end))
        values = np.where(conflict, self.best[first : min(count, end + 1)], np.float32(_NOTHING))
        place, wide = divmod(int(values.argmax()), max_width)
        found = (first + place, wide, int(self.kind[first + place, wide]), float(values[place, wide]))
        if not self.multi_label:
            same = self.scores[start, width].copy()
            same[kind] = _NOTHING
            other = int(same.argmax())
            if same[other] > found[3]:
                found = (start, width, other, float(same[other]))
        return None if found[3] == _NOTHING else found
