"""An inspection as one HTML page that needs nothing but itself: its style, script and data are in it.

Every text of the user's is escaped, and the page's own policy lets no script run but the one of the template.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from glimodern import reference

from .base import Inspection, Token
from .spans import Span
from .terminal import against, summary, token_rows

_TEMPLATE = Path(__file__).with_name("page.html")
_HUES = 8  # of the template's entity colours
_UNITS = 10_000  # scores are stored as so many parts


def render(found: Inspection) -> str:
    """The page."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts = {
        "policy": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": escape(" ".join(found.text.split())[:60]),
        "summary": "".join(f"<p>{escape(line)}</p>" for line in summary(found).split("\n")),
        "cut": "cut" if found.words_cut else "",
        "text": _text(found),
        "index": _index(found),
        "types": "".join(_type(found, number) for number in range(len(found.types))),
        "tokens": _tokens(found),
        "stages": _table(
            ("stage", "name", "shape", "dtype", "note"),
            ((s.stage, s.name, " x ".join(map(str, s.shape)), s.dtype, s.note) for s in found.stages),
        ),
        "operators": _table(
            ("operator", "backend", "isa", "why"),
            ((name, info["backend"], info["isa"], info["why"]) for name, info in found.operators.items()),
        ),
        "threshold": f"{found.threshold:g}",
        "data": json.dumps(_data(found), separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _data(found: Inspection) -> dict[str, Any]:
    """What the script draws: words, labels, kept spans and the scores of all spans in parts of _UNITS, -1 outside."""
    words, max_width, _ = found.logits.shape
    widths = min(max_width, max(words, 1))  # no span is wider
    units = (reference.probability(found.logits) * _UNITS).round().int().masked_fill(found.logits.isneginf(), -1)
    kept = [[[s.start, s.end - s.start] for s in kind.spans if s.decision == "kept"] for kind in found.types]
    return {
        "words": [[word.text, word.start, word.end] for word in found.words[:words]],
        "text": found.text,
        "labels": found.labels,
        "threshold": found.threshold,
        "widths": widths,
        "kept": kept,
        "scores": units[:, :widths].permute(2, 1, 0).flatten(1).tolist(),  # a type: [widths, words]
    }


def _text(found: Inspection) -> str:
    """The text with its entities, one inside the other where they nest (the decoder keeps none that cross)."""
    kept = [(kind, span) for kind, spans in enumerate(found.types) for span in spans.spans if span.decision == "kept"]
    kept.sort(key=lambda mark: (-mark[1].start, mark[1].end, mark[1].score))  # the outermost last, to be popped first
    pieces, opened, place = [], [], 0
    for i, word in enumerate(found.words):
        pieces.append(escape(found.text[place : word.start]))
        while kept and kept[-1][1].start == i:
            kind, span = kept.pop()
            opened.append((kind, span))
            cell = _cell(kind, span)
            pieces.append(f'<mark class="hue{kind % _HUES}" role="button" tabindex="0" data-cell="{cell}">')
        title = "" if word.status == "read" else f' title="{word.status}"'
        status = word.status.replace(" ", "-")
        pieces.append(f'<span class="word {status}" data-word="{i}"{title}>{escape(word.text)}</span>')
        while opened and opened[-1][1].end == i:
            kind, span = opened.pop()
            pieces.append(f'<small dir="auto">{escape(found.labels[kind])} {span.score:.2f}</small></mark>')
        place = word.end
    return "".join([*pieces, escape(found.text[place:])])


def _cell(kind: int, span: Span) -> str:
    return f"{kind},{span.start},{span.end - span.start}"


def _index(found: Inspection) -> str:
    """Links to the types, those with entities first in the eye."""
    links = []
    for number, kind in enumerate(found.types):
        style = f"hue{number % _HUES}" if kind.kept else "none"
        best = f"{kind.spans[0].score:.2f}" if kind.spans else "-"
        links.append(
            f'<li><a class="{style}" href="#type-{number}"><bdi>{escape(kind.label)}</bdi> '
            f'<b title="kept">{kind.kept}</b> <small title="best score">{best}</small></a></li>'
        )
    return "".join(links)


def _type(found: Inspection, number: int) -> str:
    """A type's heading, the place of its heat map, and its best spans."""
    kind = found.types[number]
    rows = []
    for span in kind.spans:
        words = str(span.start) if span.start == span.end else f"{span.start}\u2013{span.end}"
        swatch = f'<span class="swatch" style="--s:{round(20 * span.score)}"></span>'
        cells = (
            f'<td><button data-cell="{_cell(number, span)}" dir="auto">{escape(span.text)}</button></td>',
            f'<td class="number">{words}</td>',
            f'<td class="number">{swatch} {span.score:.4f}</td>',
            f'<td class="number">{span.margin:+.4f}</td>',
            f"<td>{span.decision}</td>",
            f"<td>{escape(against(span))}</td>",
        )
        rows.append(f'<tr class="{span.decision}">{"".join(cells)}</tr>')
    return (
        f'<section class="type" id="type-{number}"><h3><bdi>{escape(kind.label)}</bdi></h3>'
        f"<p>{kind.kept} kept of {kind.above} above {found.threshold:g}</p>"
        f'<div class="scroll"><div class="map" data-kind="{number}"></div></div>'
        f'<div class="wide"><table><thead><tr><th>span</th><th class="number">words</th><th class="number">score</th>'
        f'<th class="number">margin</th><th>decision</th><th>against</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div></section>"
    )


def _tokens(found: Inspection) -> str:
    """Words beside their tokens, those whose hidden state is read in bold."""
    cards = []
    for row in token_rows(found):
        first = "-" if row.first_token is None else str(row.first_token)
        name = escape(row.text) if row.text else "&nbsp;"
        note = "" if row.note in ("", "prompt", "special") else f"<em>{row.note}</em>"
        cards.append(
            f'<li class="{row.note.replace(" ", "-")}" title="{row.note or "word"}, first token {first}">'
            f'<span dir="auto">{name}</span><code>{" ".join(map(_token, row.tokens)) or "&ndash;"}</code>{note}</li>'
        )
    return "".join(cards)


def _token(token: Token) -> str:
    return f"<bdi><b>{escape(token.text)}</b></bdi>" if token.vector else f"<bdi>{escape(token.text)}</bdi>"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
