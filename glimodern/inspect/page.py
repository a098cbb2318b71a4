"""An inspection as a self-contained HTML page, which includes its style, script and data.

All text from the user is escaped. The page's content security policy allows only the template's script.
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
_HUES = 8  # entity colours of the template
_UNITS = 10_000  # scores are stored as integers in units of 1 / _UNITS


def render(inspection: Inspection) -> str:
    """Build the page."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts = {
        "policy": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": escape(" ".join(inspection.text.split())[:60]),
        "summary": "".join(f"<p>{escape(line)}</p>" for line in summary(inspection).split("\n")),
        "cut": "cut" if inspection.words_cut else "",
        "text": _text(inspection),
        "index": _index(inspection),
        "types": "".join(_type(inspection, number) for number in range(len(inspection.types))),
        "tokens": _tokens(inspection),
        "stages": _table(
            ("stage", "name", "shape", "dtype", "note"),
            ((s.stage, s.name, " x ".join(map(str, s.shape)), s.dtype, s.note) for s in inspection.stages),
        ),
        "operators": _table(
            ("operator", "backend", "isa", "why"),
            ((name, info["backend"], info["isa"], info["why"]) for name, info in inspection.operators.items()),
        ),
        "threshold": f"{inspection.threshold:g}",
        "data": json.dumps(_data(inspection), separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _data(inspection: Inspection) -> dict[str, Any]:
    """Build the data that the script draws: words, labels, kept spans, and scores in 1 / _UNITS, -1 for no span."""
    words, max_width, _ = inspection.logits.shape
    widths = min(max_width, max(words, 1))  # no span is wider than the text
    units = (reference.probability(inspection.logits) * _UNITS).round().int()
    units = units.masked_fill(inspection.logits.isneginf(), -1)
    kept = [[[s.start, s.end - s.start] for s in spans.spans if s.decision == "kept"] for spans in inspection.types]
    return {
        "words": [[word.text, word.start, word.end] for word in inspection.words[:words]],
        "text": inspection.text,
        "labels": inspection.labels,
        "threshold": inspection.threshold,
        "widths": widths,
        "kept": kept,
        "scores": units[:, :widths].permute(2, 1, 0).flatten(1).tolist(),  # per type [widths * words]
    }


def _text(inspection: Inspection) -> str:
    """Mark up the text with its entities. Nested entities are nested elements; the decoder keeps none that cross."""
    kept = [
        (type_id, span)
        for type_id, spans in enumerate(inspection.types)
        for span in spans.spans
        if span.decision == "kept"
    ]
    kept.sort(key=lambda mark: (-mark[1].start, mark[1].end, mark[1].score))  # the outermost last, to be popped first
    pieces, opened, offset = [], [], 0
    for i, word in enumerate(inspection.words):
        pieces.append(escape(inspection.text[offset : word.start]))
        while kept and kept[-1][1].start == i:
            type_id, span = kept.pop()
            opened.append((type_id, span))
            cell = _cell(type_id, span)
            pieces.append(f'<mark class="hue{type_id % _HUES}" role="button" tabindex="0" data-cell="{cell}">')
        title = "" if word.status == "read" else f' title="{word.status}"'
        status = word.status.replace(" ", "-")
        pieces.append(f'<span class="word {status}" data-word="{i}"{title}>{escape(word.text)}</span>')
        while opened and opened[-1][1].end == i:
            type_id, span = opened.pop()
            pieces.append(f'<small dir="auto">{escape(inspection.labels[type_id])} {span.score:.2f}</small></mark>')
        offset = word.end
    return "".join([*pieces, escape(inspection.text[offset:])])


def _cell(type_id: int, span: Span) -> str:
    return f"{type_id},{span.start},{span.end - span.start}"


def _index(inspection: Inspection) -> str:
    """Build the list of links to the types. Types with entities are coloured."""
    links = []
    for type_id, spans in enumerate(inspection.types):
        style = f"hue{type_id % _HUES}" if spans.kept else "none"
        best = f"{spans.spans[0].score:.2f}" if spans.spans else "-"
        links.append(
            f'<li><a class="{style}" href="#type-{type_id}"><bdi>{escape(spans.label)}</bdi> '
            f'<b title="kept">{spans.kept}</b> <small title="best score">{best}</small></a></li>'
        )
    return "".join(links)


def _type(inspection: Inspection, type_id: int) -> str:
    """Build a type's section: heading, element of the heat map, and table of its best spans."""
    spans = inspection.types[type_id]
    rows = []
    for span in spans.spans:
        words = str(span.start) if span.start == span.end else f"{span.start}\u2013{span.end}"
        swatch = f'<span class="swatch" style="--s:{round(20 * span.score)}"></span>'
        cells = (
            f'<td><button data-cell="{_cell(type_id, span)}" dir="auto">{escape(span.text)}</button></td>',
            f'<td class="number">{words}</td>',
            f'<td class="number">{swatch} {span.score:.4f}</td>',
            f'<td class="number">{span.margin:+.4f}</td>',
            f"<td>{span.decision}</td>",
            f"<td>{escape(against(span))}</td>",
        )
        rows.append(f'<tr class="{span.decision}">{"".join(cells)}</tr>')
    return (
        f'<section class="type" id="type-{type_id}"><h3><bdi>{escape(spans.label)}</bdi></h3>'
        f"<p>{spans.kept} kept of {spans.above} above {inspection.threshold:g}</p>"
        f'<div class="scroll"><div class="map" data-type-id="{type_id}"></div></div>'
        f'<div class="wide"><table><thead><tr><th>span</th><th class="number">words</th><th class="number">score</th>'
        f'<th class="number">margin</th><th>decision</th><th>against</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div></section>"
    )


def _tokens(inspection: Inspection) -> str:
    """Build the list of words with their tokens. Tokens whose hidden state is used are bold."""
    cards = []
    for row in token_rows(inspection):
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
