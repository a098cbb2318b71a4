"""Training patterns of the demo corpus: templates and clauses, varied, joined and framed.

A pattern is a sentence with slots, in the notation of `templates`. Variations name a type beside its entity, replace an
entity by its type, or swap the type of an entity. Dev and test sentences use the templates unchanged.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from . import clauses, templates, words
from .kinds import FREQUENT_TYPES, RARE_TYPES, kind_of

T = TypeVar("T")

# nouns that may stand beside a name of a frequent type; the first is the type itself
NOUNS_OF = {
    "surgeon": ("surgeon", "chief surgeon", "heart surgeon"),
    "patient": ("patient", "new patient"),
    "hospital": ("hospital", "children's hospital"),
    "disease": ("disease", "rare disease"),
    "drug": ("drug", "new drug", "painkiller"),
    "singer": ("singer", "pop singer", "folk singer"),
    "band": ("band", "rock band", "punk band", "group"),
    "song": ("song", "single", "hit song"),
    "album": ("album", "debut album", "record"),
    "executive": ("executive", "chief executive", "chairman", "finance chief"),
    "company": ("company", "firm", "family company"),
    "bank": ("bank", "savings bank", "lender"),
    "product": ("product", "new product", "gadget"),
    "player": ("player", "striker", "midfielder", "defender"),
    "coach": ("coach", "head coach"),
    "team": ("team", "home team", "club side"),
    "stadium": ("stadium", "football stadium"),
    "tournament": ("tournament", "cup"),
    "city": ("city", "city of"),
    "country": ("country", "country of"),
    "river": ("river", "long river"),
    "hotel": ("hotel", "beach hotel", "grand hotel"),
    "airline": ("airline", "budget airline"),
    "programmer": ("programmer", "developer", "senior programmer"),
    "programming language": ("programming language", "language"),
    "database": ("database", "online database"),
    "video game": ("video game", "game"),
}

OPENINGS = """
On <day>,
In <month>,
In <year>,
On <day> evening,
Last [week|month|year|night],
After the [war|meeting|storm|holidays|party],
Before the [war|meeting|storm|holidays|match],
Yesterday,
Today,
According to the [paper|report|police],
As usual,
Sadly,
In the end,
At first,
However,
Meanwhile,
Early in the morning,
[Two|Three] days later,
They say that
We heard that
The [paper|magazine] wrote that
It is true that
I think that
Everybody knows that
She said that
Nobody knew that
It was on a <day> that
Perhaps
For once,
To our surprise,
When the rain stopped,
"""
CLOSINGS = """
 on <day>
 in <month>
 in <year>
 last [week|night|year]
 again
 yesterday
 this [morning|week|summer]
 at [night|noon|midnight]
, according to the [paper|report|police]
, as everybody knows
 after <number> days
 for the first time
 without a word
, they say
, she said
, which surprised nobody
 in the rain
 at the end of <month>
 more than once
 until <month>
 with great care
 once more
"""
JOINTS = (
    *(", and ", ", and ", ", but ", " while ", " because ", " after ", " before "),
    *(", so ", " when ", " although ", "; ", ". ", ". ", ". "),
)
# (weight, replacement for a name); {noun}: noun of its type, {name}: its slot
PERSON_FORMS = ((1.5, "{noun} {name}"),)
OTHER_FORMS = ((0.7, 'the {noun} "{name}"'),)
FORMS = (
    (5.0, "the {noun} {name}"),
    (2.0, "{name}, a {noun},"),
    (1.0, "{name}, the {noun},"),
    (1.5, "{name}, a <nationality> {noun},"),
    (1.0, "a {noun} [called|named] {name}"),
    (1.0, "the <nationality> {noun} {name}"),
    (0.7, "[our|their|his|her|my] {noun} {name}"),
    (1.0, "the [old|famous|new|small|local|great|last] {noun} {name}"),
    (0.5, "{name} (a {noun})"),
    (0.3, "{name}, the [best|first|last] {noun} in {{city}},"),
)
UNNAMED = ("the {noun}", "the {noun}", "a {noun}", "[our|their|his|her|my] {noun}")
MAX_SLOTS = 4

_SLOT = re.compile(r"\{([\w ]+)\}")
_NOUN = re.compile(r"\$([a-z]+)\d?")
_NAME = re.compile(r"\{(\$[a-z]+\d?)\}")
_ARTICLE = re.compile(r"(?:\b(?:[Tt]he|[Aa]n?|called|named)|\bDr\.) $")
_FREQUENT_OF_KIND = {kind: [label for label in FREQUENT_TYPES if kind_of(label) == kind] for kind in RARE_TYPES}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sentence pattern, its domain, and the types that it mentions without an entity (`unnamed`)."""

    domain: str
    text: str
    unnamed: tuple[str, ...] = ()


class Composer:
    """Draws training patterns; deterministic for a seeded `rng`."""

    def __init__(self, rng: random.Random) -> None:
        domain_of = {label: domain for domain, labels in words.DOMAINS.items() for label in labels}
        by_type = {label: block.strip().splitlines() for label, block in clauses.CLAUSES.items()}
        self.rng = rng
        self.seen = _Rounds(_lines(templates.SEEN), rng)
        self.plain = _Rounds(_lines(templates.PLAIN), rng)
        self.clauses = _Rounds([(domain_of[label], line) for label in by_type for line in by_type[label]], rng)
        self.generic = _Rounds([line for _, line in _lines(clauses.GENERIC)], rng)
        self.broad = _Rounds(templates.BROAD.strip().splitlines(), rng)
        self.cues = _Rounds(clauses.CUES.strip().splitlines(), rng)
        self.mentions = _Rounds(clauses.MENTIONS.strip().splitlines(), rng)
        self.rare = {kind: _Rounds(labels, rng) for kind, labels in RARE_TYPES.items()}
        self.openings, self.closings = OPENINGS.strip("\n").splitlines(), CLOSINGS.strip("\n").splitlines()

    def seen_sentence(self) -> Pattern:
        """Draw a template of dev and test, unchanged or varied."""
        domain, text = self.seen.draw()
        if self.rng.random() < 0.5:
            return Pattern(domain, text)
        text, unnamed = self._vary(_lowered(text), named=0.15)
        return Pattern(domain, self._frame(text, 0.3), unnamed)

    def clause_sentence(self) -> Pattern:
        """Draw one or two clauses about frequent types."""
        domain, text = self.clauses.draw()
        text, unnamed = self._vary(text, named=0.25)
        if self.rng.random() < 0.15:
            text, unnamed = self._join((text, unnamed), self._vary(self.clauses.draw()[1], named=0.25))
        return Pattern(domain, self._frame(text, 0.35), unnamed)

    def rare_sentence(self) -> Pattern:
        """Draw one or two clauses, at least one of them about a rare type."""
        clause = self._rare_clause()
        if self.rng.random() < 0.15:
            rare = self.rng.random() < 0.5
            clause = self._join(clause, self._rare_clause() if rare else self._vary(self.clauses.draw()[1], 0.3))
        text, unnamed = clause
        return Pattern("broad", self._frame(text, 0.35), unnamed)

    def plain_sentence(self) -> Pattern:
        """Draw a sentence without entities."""
        return Pattern(*self.plain.draw())

    def _rare_clause(self) -> tuple[str, tuple[str, ...]]:
        share = self.rng.random()
        if share < 0.12:
            return self.cues.draw(), ()
        if share < 0.30:
            return self._with_nouns(_lowered(self.broad.draw()), named=False)
        if share < 0.48:
            return self._with_nouns(self.mentions.draw(), named=True)
        if share < 0.80:
            return self._with_nouns(self.generic.draw(), named=True)
        _, text = self.clauses.draw() if self.rng.random() < 0.6 else self.seen.draw()
        return self._swap(_lowered(text))

    def _vary(self, text: str, named: float) -> tuple[str, tuple[str, ...]]:
        """Add the type beside some names of a clause, replace one name by its type, or swap the type of one name.

        named: probability that a name gets its type. Returns (clause, types mentioned without an entity).
        """
        share = self.rng.random()
        if share < 0.06:
            return self._swap(text)
        unname = share < 0.14
        unnamed: list[str] = []

        def name(match: re.Match[str]) -> str:
            nonlocal unname
            label, before = match[1], text[: match.start()]
            if label not in NOUNS_OF or _stated_noun(before, label):
                return match[0]
            if before.endswith("the "):
                return f"{label} {match[0]}" if self.rng.random() < named else match[0]
            if _ARTICLE.search(before):
                return match[0]
            if unname:
                unname = False
                unnamed.append(label)
                return self.rng.choice(UNNAMED).format(noun=label)
            if self.rng.random() < named:
                return self._with_type(match[0], self.rng.choice((label, *NOUNS_OF[label])), kind_of(label))
            return match[0]

        return _tidy(_SLOT.sub(name, text)), tuple(unnamed)

    def _swap(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Replace one name of a clause by a name of an unexpected type, with that type as the noun beside it."""
        slots = [match for match in _SLOT.finditer(text) if match[1] in NOUNS_OF]
        if not slots:
            return text, ()
        match = self.rng.choice(slots)
        kind = kind_of(match[1]) if self.rng.random() < 0.7 else self.rng.choice(list(RARE_TYPES))
        label = self._draw_type(kind, frequent=0.15)
        before, after = text[: match.start()], text[match.end() :]
        stated = _stated_noun(before, match[1])
        if stated is not None:
            changed = f"{before[: -len(stated) - 1]}{label} {{{label}}}{after}"
        elif before.endswith("the "):
            changed = f"{before}{label} {{{label}}}{after}"
        else:
            changed = f"{before.removesuffix('Dr. ')}{self._with_type(f'{{{label}}}', label, kind)}{after}"
        return _tidy(changed), () if label == match[1] else (match[1],)

    def _with_nouns(self, text: str, named: bool) -> tuple[str, tuple[str, ...]]:
        """Replace each $kind in a clause by a type of that kind. named: also add the type beside each name."""
        chosen: dict[str, str] = {}
        for variable in _NOUN.finditer(text):
            while variable[0] not in chosen:
                label = self._draw_type(variable[1], frequent=0.12)
                if label not in chosen.values():
                    chosen[variable[0]] = label

        def name(match: re.Match[str]) -> str:
            label = chosen[match[1]]
            return self._with_type(f"{{{label}}}", label, kind_of(label)) if named else f"{{{label}}}"

        have_names = set(_NAME.findall(text))
        unnamed = tuple(label for variable, label in chosen.items() if variable not in have_names)
        text = _NAME.sub(name, text)
        return _tidy(_NOUN.sub(lambda variable: chosen[variable[0]], text)), unnamed

    def _draw_type(self, kind: str, frequent: float) -> str:
        """Draw a type of a kind: a frequent one with probability `frequent`, else a rare one."""
        return self.rng.choice(_FREQUENT_OF_KIND[kind]) if self.rng.random() < frequent else self.rare[kind].draw()

    def _with_type(self, slot: str, noun: str, kind: str) -> str:
        """Put a noun beside a slot, as in "the band {band}"."""
        if noun.endswith(" of"):
            return f"the {noun} {slot}"
        forms = FORMS + (PERSON_FORMS if kind == "person" else OTHER_FORMS)
        form = self.rng.choices([form for _, form in forms], [weight for weight, _ in forms])[0]
        return form.format(noun=noun, name=slot)

    def _join(self, one: tuple[str, tuple[str, ...]], two: tuple[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
        """Join two clauses, or return the first if both together have more than MAX_SLOTS slots."""
        (text, unnamed), (other, more) = one, two
        if len(_SLOT.findall(text)) + len(_SLOT.findall(other)) > MAX_SLOTS:
            return one
        joint = self.rng.choice(JOINTS)
        return text + joint + (_raised(other) if joint == ". " else other), (*unnamed, *more)

    def _frame(self, text: str, share: float) -> str:
        """Make a sentence from a clause: perhaps add an opening or a closing, and usually a full stop.

        share: probability of an opening; without one, probability of a closing.
        """
        if self.rng.random() < share:
            text = f"{self.rng.choice(self.openings)} {text}"
        elif self.rng.random() < share:
            text += self.rng.choice(self.closings)
        return _tidy(_raised(text) + ("" if self.rng.random() < 0.05 else "."))


class _Rounds(Generic[T]):
    """Draws items at random; every item is drawn once before any is drawn again."""

    def __init__(self, items: Sequence[T], rng: random.Random) -> None:
        self.items, self.rng = list(items), rng
        self.remaining: list[T] = []

    def draw(self) -> T:
        if not self.remaining:
            self.remaining = self.rng.sample(self.items, len(self.items))
        return self.remaining.pop()


def _lines(blocks: dict[str, str]) -> list[tuple[str, str]]:
    return [(key, line) for key, block in blocks.items() for line in block.strip().splitlines()]


def _stated_noun(before: str, label: str) -> str | None:
    """Return the noun of a type that stands directly before its slot, as in "the band {band}", or None."""
    nouns = sorted(NOUNS_OF[label], key=len, reverse=True)
    return next((before[-len(noun) - 1 : -1] for noun in nouns if before.lower().endswith(f"{noun} ")), None)


def _lowered(sentence: str) -> str:
    """Convert a template to a clause: drop its full stop and its capital letter, except in "Dr."."""
    text = sentence.removesuffix(".")
    if text.startswith("Dr."):
        return text
    head = text.index("]") if text.startswith("[") else 1
    return text[:head].lower() + text[head:]


def _raised(text: str) -> str:
    return text[0].upper() + text[1:]


def _tidy(text: str) -> str:
    """Remove commas before other punctuation and at the end, and change "a" before a vowel to "an"."""
    text = re.sub(r",(?=[,.;]|$| \()", "", text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
