"""What an inspection holds: words, tokens, stages, spans, entities of one text as one model sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from .spans import TypeSpans
from .stages import Stage


@dataclass(frozen=True)
class Token:
    """A token of the packed batch. part: "special", "prompt" or "word"; owner: index of its word, or of the label whose
    prompt it is in, None for neither; vector: whether its hidden state becomes a word's or a type's vector."""

    text: str
    id: int
    part: str
    owner: int | None
    vector: bool


@dataclass(frozen=True)
class InspectedWord:
    """A word of the text and its tokens, tokens[first_token : first_token + token_count] of the inspection.

    start, end: characters, end exclusive. status: "read"; "cut short", its last tokens do not fit; "cut", not read at
    all; "missing", the tokenizer turns it into nothing, and its vector is zero.
    """

    text: str
    start: int
    end: int
    status: str
    first_token: int
    token_count: int


@dataclass(frozen=True)
class Inspection:
    """One text, as one model sees it.

    logits: fp32 [words read, max_width, types] on the CPU, -inf where a span leaves the text; all else is plain data.
    entities: what `predict` finds, dicts with start, end, text, label, score. types: one a label, in their order.
    operators: ops.backend_info of the operators that this model runs. max_words, max_tokens (None: no limit): where
    texts are cut.
    """

    model: dict[str, Any]
    text: str
    labels: list[str]
    threshold: float
    flat: bool
    multi_label: bool
    words: list[InspectedWord]
    tokens: list[Token]
    words_cut: int
    max_words: int
    max_tokens: int | None
    stages: list[Stage]
    operators: dict[str, dict[str, str]]
    entities: list[dict[str, Any]]
    types: list[TypeSpans]
    logits: Tensor

    def to_dict(self) -> dict[str, Any]:
        """All but the logits, ready for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "logits"}

    def to_html(self) -> str:
        """A page that needs nothing but itself: text with entities, a start x width heat map per type, all tables."""
        from .page import render

        return render(self)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [asdict(item) if isinstance(item, (InspectedWord, Token, Stage, TypeSpans)) else item for item in value]
    return value
