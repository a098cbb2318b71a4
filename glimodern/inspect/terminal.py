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


def summary(found: Inspection) -> str:
    """The run in two lines: what was asked of which model, and what was cut."""
    model, prompt = found.model, sum(token.part == "prompt" for token in found.tokens)
    limit = "no limit of tokens" if found.max_tokens is None else f"{found.max_tokens} tokens with the prompt"
    cut = f"{found.words_cut} words at the end were NOT read" if found.words_cut else "nothing was cut"
    return (
        f"{model['source'] or 'a model in memory'} ({model['encoder']}, {model['span_mode']}, {model['dtype']} on "
        f"{model['device']}): {len(found.words)} words, {len(found.labels)} types, {len(found.tokens)} tokens "
        f"({prompt} of the prompt), {len(found.entities)} entities above {found.threshold:g}\n"
        f"{cut} (the model takes {found.max_words} words, {limit})"
    )


def render(found: Inspection) -> Group:
    """Everything but the heat maps; what the user gave is never read as markup."""
    return Group(
        Text(summary(found), style="bold red" if found.words_cut else ""), _stages(found), _operators(found),
        _tokens(found), *_types(found),
    )  # fmt: skip


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=cell(title), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _row(table: Table, *cells: Any, style: str = "") -> None:
    table.add_row(*map(cell, cells), style=style)


def _stages(found: Inspection) -> Table:
    table = _table("Shapes", "stage", "name", "shape", "dtype", "note")
    last = ""
    for stage in found.stages:
        shape = "" if stage.stage == "PackedBatch" and not stage.shape else list(stage.shape)
        _row(table, "" if stage.stage == last else stage.stage, stage.name, shape, stage.dtype, stage.note)
        last = stage.stage
    return table


def _operators(found: Inspection) -> Table:
    table = _table("Operators", "operator", "backend", "isa", "why")
    for name, info in found.operators.items():
        _row(table, name, info["backend"], info["isa"], info["why"])
    return table


def _tokens(found: Inspection) -> Table:
    table = _table("Tokens", "token", "word", "text", "tokens ([] gives the vector)", "note", right=("token", "word"))
    styles = {"prompt": "cyan", "special": "dim", "missing": "yellow", "cut": "red", "cut short": "red"}
    for row in token_rows(found):
        place, word = ("" if number is None else number for number in (row.first_token, row.word))
        tokens = " ".join(f"[{token.text}]" if token.vector else token.text for token in row.tokens)
        _row(table, place, word, row.text, tokens, row.note, style=styles.get(row.note, ""))
    return table


class TokenRow(NamedTuple):
    """A word, a label's prompt, or special tokens, and the tokens of it; word: its index; note: "special", "prompt", or
    what is wrong with a word."""

    first_token: int | None
    word: int | None
    text: str
    tokens: list[Token]
    note: str


def token_rows(found: Inspection) -> list[TokenRow]:
    """In the order of the tokens; a word without tokens stands where it stands in the text."""
    rows, place = [], 0
    for (part, owner), group in groupby(found.tokens, key=lambda token: (token.part, token.owner)):
        end = place + sum(1 for _ in group)
        if part != "word":
            name = "" if owner is None else found.labels[owner]
            rows.append(TokenRow(place, None, name, found.tokens[place:end], part))
        place = end
    words = []
    for i, word in enumerate(found.words):
        first = word.first_token if word.token_count else None
        tokens = found.tokens[word.first_token : word.first_token + word.token_count] if word.token_count else []
        words.append(TokenRow(first, i, word.text, tokens, "" if word.status == "read" else word.status))
    middle = 1 + max(i for i, row in enumerate(rows) if row.note == "prompt")
    return [*rows[:middle], *words, *rows[middle:]]


def _types(found: Inspection) -> Iterator[Table]:
    for kind in found.types:
        title = f"{kind.label}: {kind.kept} kept of {kind.above} above {found.threshold:g}"
        table = _table(title, "span", "words", "score", "margin", "decision", "against", right=("score", "margin"))
        for span in kind.spans:
            style = _STYLES[span.decision]
            _row(table, span.text, f"{span.start}-{span.end}", f"{span.score:.4f}", f"{span.margin:+.4f}",
                 span.decision, against(span), style=style)  # fmt: skip
        yield table


def against(span: Span) -> str:
    """What beat the span, or its runner-up."""
    rival = span.rival
    if rival is None:
        return ""
    same = (rival.start, rival.end) == (span.start, span.end)
    where = "the same words" if same else f"{rival.text!r} ({rival.start}-{rival.end})"
    return f"{'by' if span.decision == 'beaten' else 'runner-up'} {rival.label}: {where}, {rival.score:.4f}"
