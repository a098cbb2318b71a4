"""Redaction: a text with its entities replaced by placeholders, masks or pseudonyms."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from glimodern.display import short

from .entities import Entities

Style = Literal["placeholder", "mask", "pseudonym"]
STYLES: tuple[Style, ...] = get_args(Style)

_BRACKETS = re.compile(r"\[[^][]*\]")
_PSEUDONYM = 8  # characters of base32, 40 bits


class Redaction(NamedTuple):
    """A text whose entities are replaced.

    text: the redacted text. entities: those of the source text; each also has "replacement", and "redacted_start" and
    "redacted_end", its characters in the redacted text.
    """

    text: str
    entities: Entities


def redact(
    text: str, entities: Sequence[Mapping[str, Any]], style: Style = "placeholder", *, key: bytes = b""
) -> Redaction:
    """Replace the entities of a text.

    entities: of `predict`, which do not overlap. style: "placeholder": "[PERSON_1]"; entities of one label with the
    same text, but for case and spaces, have the same number, and no placeholder is one that the text has already.
    "mask": "*" for each character, so that offsets stay. "pseudonym": "PERSON_k3x9q2ab", the same in all texts for the
    same label, entity text and `key`. The key must be secret: who has it can test guesses of an entity's text.

    Raises ValueError for overlapping entities, a style of another name, and pseudonyms without a key.
    """
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {short(style)}")
    if style == "pseudonym" and not key:
        raise ValueError("key: expected secret bytes for the style pseudonym, got none")
    replacement = {"placeholder": _placeholders(text), "mask": _mask, "pseudonym": _pseudonyms(key)}[style]
    redacted = Entities()
    if isinstance(entities, Entities):
        redacted = Entities((), entities.words_cut, entities.windows)
    parts: list[str] = []
    end = length = 0
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not end <= entity["start"] < entity["end"] <= len(text):
            raise ValueError(
                f"entities: expected spans inside the text that do not overlap, got {entity['start']} to "
                f"{entity['end']} after {end}; predict with flat=True and multi_label=False"
            )
        kept, found = text[end : entity["start"]], text[entity["start"] : entity["end"]]
        new = replacement(found, entity["label"])
        start = length + len(kept)
        redacted.append({**entity, "replacement": new, "redacted_start": start, "redacted_end": start + len(new)})
        parts += [kept, new]
        end, length = entity["end"], start + len(new)
    return Redaction("".join([*parts, text[end:]]), redacted)


def _mask(found: str, label: str) -> str:
    return "*" * len(found)


def _placeholders(text: str) -> Callable[[str, str], str]:
    numbers: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    taken = set(_BRACKETS.findall(text))  # collected once: a text may have as many entities as words

    def replacement(found: str, label: str) -> str:
        name, key = _name(label), (_name(label), _same(found))
        while key not in numbers:
            counts[name] = counts.get(name, 0) + 1
            if f"[{name}_{counts[name]}]" not in taken:
                numbers[key] = f"[{name}_{counts[name]}]"
        return numbers[key]

    return replacement


def _pseudonyms(key: bytes) -> Callable[[str, str], str]:
    def replacement(found: str, label: str) -> str:
        name = _name(label)
        digest = hmac.digest(key, f"{name}\0{_same(found)}".encode(), hashlib.sha256)
        return f"{name}_{base64.b32encode(digest).decode().lower()[:_PSEUDONYM]}"

    return replacement


def _name(label: str) -> str:
    """Return a label as the name in its placeholders: "date of birth" -> "DATE_OF_BIRTH"."""
    words = "".join(char if _in_word(char) else " " for char in label).split()
    return "_".join(words).strip("_").upper() or "ENTITY"


def _in_word(char: str) -> bool:
    """Return whether a character is part of a word; vowel signs and other marks are too."""
    return char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")


def _same(found: str) -> str:
    """Return what entity texts have in common that count as the same."""
    return " ".join(found.split()).casefold()
