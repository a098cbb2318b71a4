"""An inspection as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from glimodern.display import cell

from .base import Inspection, Token
from .spans import Span

_STYLES = {"kept": "green", "beaten": "yellow", "below": "dim"}


def summary(inspection: Inspection) -> str:
    """Summarise the inspection in two lines: model and sizes; truncation."""
    model, prompt = inspection.model, sum(token.part == "prompt" for token in inspection.tokens)
    limit = "no limit of tokens" if inspection.max_tokens is None else f"{inspection.max_tokens} tokens with the prompt"
    cut = "nothing was cut"
    if inspection.words_cut:
        cut = f"{inspection.words_cut} words at the end were NOT read; predict reads them in further windows"
    return (
        f"{model['source'] or 'a model in memory'} ({model['encoder']}, {model['span_mode']}, {model['dtype']} on "
        f"{model['device']}): {len(inspection.words)} words, {len(inspection.labels)} types, {len(inspection.tokens)} "
        f"tokens ({prompt} of the prompt), {len(inspection.entities)} entities above {inspection.threshold:g}\n"
        f"{cut} (the model takes {inspection.max_words} words, {limit})"
    )


def render(inspection: Inspection) -> Group:
    """Build all tables, without the heat maps. Text from the user is never interpreted as markup."""
    return Group(
        Text(summary(inspection), style="bold red" if inspection.words_cut else ""), _stages(inspection),
        _operators(inspection), _tokens(inspection), *_types(inspection),
    )  # fmt: skip


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=cell(title), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: Any, style: str = "") -> None:
    table.add_row(*map(cell, cells), style=style)


def _stages(inspection: Inspection) -> Table:
    table = _table("Shapes", "stage", "name", "shape", "dtype", "note")
    last = ""
    for stage in inspection.stages:
        shape = "" if stage.stage == "PackedBatch" and not stage.shape else list(stage.shape)
        _row(table, "" if stage.stage == last else stage.stage, stage.name, shape, stage.dtype, stage.note)
        last = stage.stage
    return table


def _operators(inspection: Inspection) -> Table:
    table = _table("Operators", "operator", "backend", "isa", "why")
    for name, info in inspection.operators.items():
        _row(table, name, info["backend"], info["isa"], info["why"])
    return table


def _tokens(inspection: Inspection) -> Table:
    table = _table("Tokens", "token", "word", "text", "tokens ([] gives the vector)", "note", right=("token", "word"))
    styles = {"prompt": "cyan", "special": "dim", "missing": "yellow", "cut": "red", "cut short": "red"}
    for row in token_rows(inspection):
        first_token, word = ("" if index is None else index for index in (row.first_token, row.word))
        tokens = " ".join(f"[{token.text}]" if token.vector else token.text for token in row.tokens)
        _row(table, first_token, word, row.text, tokens, row.note, style=styles.get(row.note, ""))
    return table


class TokenRow(NamedTuple):
    """A word, a label's prompt or special tokens, with the tokens.

    first_token: index of the first token. word: index of the word. Both may be None. note: "special", "prompt", or the
    status of a word that is not "read".
    """

    first_token: int | None
    word: int | None
    text: str
    tokens: list[Token]
    note: str


def token_rows(inspection: Inspection) -> list[TokenRow]:
    """List the rows in the order of the tokens. Words without tokens are listed in the order of the text."""
    rows, start = [], 0
    for (part, owner), group in groupby(inspection.tokens, key=lambda token: (token.part, token.owner)):
        end = start + sum(1 for _ in group)
        if part != "word":
            name = "" if owner is None else inspection.labels[owner]
            rows.append(TokenRow(start, None, name, inspection.tokens[start:end], part))
        start = end
    words = []
    for i, word in enumerate(inspection.words):
        first = word.first_token if word.token_count else None
        tokens = inspection.tokens[word.first_token : word.first_token + word.token_count] if word.token_count else []
        words.append(TokenRow(first, i, word.text, tokens, "" if word.status == "read" else word.status))
    after_prompt = 1 + max(i for i, row in enumerate(rows) if row.note == "prompt")
    return [*rows[:after_prompt], *words, *rows[after_prompt:]]


def _types(inspection: Inspection) -> Iterator[Table]:
    for spans in inspection.types:
        title = f"{spans.label}: {spans.kept} kept of {spans.above} above {inspection.threshold:g}"
        table = _table(title, "span", "words", "score", "margin", "decision", "against", right=("score", "margin"))
        for span in spans.spans:
            style = _STYLES[span.decision]
            _row(table, span.text, f"{span.start}-{span.end}", f"{span.score:.4f}", f"{span.margin:+.4f}",
                 span.decision, against(span), style=style)  # fmt: skip
        yield table


def against(span: Span) -> str:
    """Describe the span's rival: the span that beat it, or its runner-up."""
    rival = span.rival
    if rival is None:
        return ""
    same = (rival.start, rival.end) == (span.start, span.end)
    words = "the same words" if same else f"{rival.text!r} ({rival.start}-{rival.end})"
    return f"{'by' if span.decision == 'beaten' else 'runner-up'} {rival.label}: {words}, {rival.score:.4f}"
