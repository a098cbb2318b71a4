"""The data of an inspection: words, tokens, stages, spans and entities of one text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from .spans import TypeSpans
from .stages import Stage


@dataclass(frozen=True)
class Token:
    """A token of the packed batch.

    part: "special", "prompt" or "word". owner: index of the token's word, or of the label whose prompt it is in, or
    None. vector: whether its hidden state becomes a word's or a type's vector.
    """

    text: str
    id: int
    part: str
    owner: int | None
    vector: bool


@dataclass(frozen=True)
class InspectedWord:
    """A word of the text. Its tokens are tokens[first_token : first_token + token_count] of the inspection.

    start, end: character offsets, end exclusive. status: "read"; "cut short" if its last tokens do not fit; "cut" if it
    is not read; "missing" if the tokenizer gives no token for it, so that its vector is zero.
    """

    text: str
    start: int
    end: int
    status: str
    first_token: int
    token_count: int


@dataclass(frozen=True)
class Inspection:
    """A model's prediction for one text, with intermediate results.

    model: facts about the model. words_cut: number of words that were not read. max_words, max_tokens: the lengths at
    which texts are truncated; None: no limit. operators: `ops.backend_info` of the operators that the model runs.
    entities: the result of `predict`, dicts with the keys start, end, text, label and score. types: the best spans of
    each label, in the order of the labels. logits: fp32 [words read, max_width, types] on the CPU, -inf for spans that
    leave the text. All fields but logits are plain data.
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
        """Return all fields except the logits as data for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "logits"}

    def to_html(self) -> str:
        """Build a self-contained HTML page: the text with its entities, a heat map per type, and all tables."""
        from .page import render

        return render(self)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [asdict(item) if isinstance(item, (InspectedWord, Token, Stage, TypeSpans)) else item for item in value]
    return value
