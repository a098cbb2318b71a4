"""The best spans of each type, the decoder's decisions on them, and their strongest rivals."""

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
_NO_SCORE = -1.0  # below every probability


@dataclass(frozen=True)
class Rival:
    """A span and type that conflicts with another span. start, end: words, end inclusive."""

    start: int
    end: int
    text: str
    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """A span of one type, with the decoder's decision.

    start, end: words, end inclusive. margin: score - threshold. decision: "kept"; "beaten" by a conflicting kept span,
    its `rival`; or "below" the threshold. If the span is not beaten, rival is its runner-up: the strongest span and
    type that conflict with it, or None.
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
    """The spans of one type by descending score. above: number of all its spans above the threshold. kept: number of
    its entities."""

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
    """Return the `top` best spans of each type, and all its kept ones.

    logits: fp32 [n, K, m]. kept: the entities of the text from `decode_texts`.
    """
    scores: Floats = reference.probability(logits).numpy()  # the same rounding as in the comparison with the threshold
    _, max_width, types = scores.shape
    kept_scores: Floats = np.full_like(scores, _NO_SCORE)
    for start, end, type_id, _ in kept:
        kept_scores[start, end - start, type_id] = scores[start, end - start, type_id]
    inside = np.isfinite(logits.numpy()).any(axis=2)
    all_scores: Floats = np.where(inside[..., None], scores, np.float32(_NO_SCORE))
    all_spans = _Rivals(all_scores, flat=flat, multi_label=multi_label)
    kept_spans = _Rivals(kept_scores, flat=flat, multi_label=multi_label)

    def span_text(start: int, end: int) -> str:
        return text[words[start].start : words[end].end]

    def describe(start: int, width: int, type_id: int) -> Span:
        score = float(scores[start, width, type_id])
        is_kept = kept_scores[start, width, type_id] != _NO_SCORE
        strongest = None if is_kept or score <= threshold else kept_spans.strongest(start, width, type_id)
        decision = "kept" if is_kept else "below" if strongest is None else "beaten"
        strongest = strongest or all_spans.strongest(start, width, type_id)
        rival = None
        if strongest is not None:
            rival_start, rival_width, rival_type, rival_score = strongest
            rival_end = rival_start + rival_width
            rival = Rival(rival_start, rival_end, span_text(rival_start, rival_end), labels[rival_type], rival_score)
        return Span(
            start=start,
            end=start + width,
            text=span_text(start, start + width),
            logit=float(logits[start, width, type_id]),
            score=score,
            margin=score - threshold,
            decision=decision,
            rival=rival,
        )

    result = []
    for type_id in range(types):
        order = np.argsort(-all_scores[..., type_id].reshape(-1), kind="stable")
        order = order[inside.reshape(-1)[order]]
        is_kept = kept_scores[..., type_id].reshape(-1) != _NO_SCORE
        beyond_top = [index for index in order[top:].tolist() if is_kept[index]]
        shown = [divmod(index, max_width) for index in (*order[:top].tolist(), *beyond_top)]
        result.append(
            TypeSpans(
                label=labels[type_id],
                above=int((all_scores[..., type_id] > threshold).sum()),
                kept=int(is_kept.sum()),
                spans=[describe(start, width, type_id) for start, width in shown],
            )
        )
    return result


class _Rivals:
    """Searches scores [n, K, m] of spans and types for conflicts with a span. _NO_SCORE stands for no span."""

    def __init__(self, scores: Floats, *, flat: bool, multi_label: bool) -> None:
        self.scores = scores
        self.flat = flat
        self.multi_label = multi_label
        self.best_type = scores.argmax(axis=2)
        self.best = scores.max(axis=2)

    def strongest(self, start: int, width: int, type_id: int) -> tuple[int, int, int, float] | None:
        """Return (start, width, type_id, score) of the strongest rival, which greedy_decode would not keep with this
        span and type; None if there is none."""
        count, max_width, _ = self.scores.shape
        end = start + width
        first = max(0, start - max_width + 1)
        starts = np.arange(first, min(count, end + 1))[:, None]
        ends = starts + np.arange(max_width)[None, :]
        conflict: Any = (ends >= start) & ((starts != start) | (ends != end))
        if not self.flat:  # nested spans do not conflict, crossing ones do
            conflict &= ~((starts >= start) & (ends <= end)) & ~((starts <= start) & (ends >= end))
        values = np.where(conflict, self.best[first : min(count, end + 1)], np.float32(_NO_SCORE))
        row, rival_width = divmod(int(values.argmax()), max_width)
        rival_start = first + row
        rival_type = int(self.best_type[rival_start, rival_width])
        strongest = (rival_start, rival_width, rival_type, float(values[row, rival_width]))
        if not self.multi_label:
            same_words = self.scores[start, width].copy()
            same_words[type_id] = _NO_SCORE
            other = int(same_words.argmax())
            if same_words[other] > strongest[3]:
                strongest = (start, width, other, float(same_words[other]))
        return None if strongest[3] == _NO_SCORE else strongest
