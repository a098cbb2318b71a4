"""The demo corpus from templates and names: training, dev and test sentences with exact word offsets."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...text import split_words
from ..example import Dataset, Entity, Example
from . import templates, words
from .names import Pools, alikeness, deal_names, draw_name

GROUP_SEEN = "seen templates"
GROUP_NEW = "new templates"
GROUP_HELD_OUT = "held-out types"

NEW_SHARE = 0.2
HELD_OUT_SHARE = 0.15
PLAIN_SHARE = 0.06
BROAD_SHARE = 0.2

# how the types to ask for are chosen (see _ask)
COARSE_SHARE = 0.35
UNASKED_SHARE = 0.2
NEGATIVES = (3, 6)
ALIKE = 0.4

_NOUN = re.compile(r"\$([a-z]+)\d?")
_PIECE = re.compile(r"\{(?P<slot>[\w ]+)\}|\[(?P<options>[^\]]+)\]|<(?P<filler>\w+)>")


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """The three splits and the types that only the test split has.

    train: complete annotation, fine and coarse: a span that is a "surgeon" is a "person" too, as two entities over the
           same words. `types` is None: whatever types are asked, the entities with those labels are all there is to
           find. `group` is the domain.
    dev, test: `types` are the ones to ask for, at one level for each coarse type, and `entities` only those of asked
           types, so a span has one label. Names never occur in another split.
           A share of the sentences is about `words.BROAD_TYPES`, which dev and test do not have (domain "broad").
    dev:   seen types and templates; `group` is the domain.
    test:  `group` is GROUP_SEEN, GROUP_NEW (templates never in training or dev) or GROUP_HELD_OUT (sentences with an
           entity of `held_out_types`; only these ask for them).
    """

    train: Dataset
    dev: Dataset
    test: Dataset
    held_out_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Template:
    """A sentence pattern; `name` says domain, kind and line."""

    name: str
    domain: str
    pattern: str


def build_demo_corpus(
    seed: int = 0, *, train_size: int = 10000, dev_size: int = 400, test_size: int = 1000
) -> DemoCorpus:
    """The corpus, the same for the same arguments on every machine; sizes in sentences.

    Raises ValueError for a size below 1.
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}: wanted at least 1 sentence, got {size}; the default is 400 or more")
    pools = deal_names(random.Random(f"{seed} names"))

    seen, plain = _load("seen", templates.SEEN), _load("plain", templates.PLAIN)
    new, plain_new = _load("new", templates.NEW), _load("plain-new", templates.PLAIN_NEW)
    held_out, broad = _load("held-out", templates.HELD_OUT), _load("broad", {"broad": templates.BROAD})
    new_size, held_out_size = round(test_size * NEW_SHARE), round(test_size * HELD_OUT_SHARE)

    rng = random.Random(f"{seed} train")
    broad_size = round(train_size * BROAD_SHARE)
    plan = _schedule(seen, plain, train_size - broad_size, rng)
    plan += [_with_nouns(template, rng) for template in _rounds(broad, broad_size, rng)]
    rng.shuffle(plan)
    train = [
        _write(template, pools["train"], rng, f"demo-train/{template.name}:{line}")
        for line, template in enumerate(plan, 1)
    ]
    rng = random.Random(f"{seed} dev")
    dev = [
        _ask(_write(template, pools["dev"], rng, f"demo-dev/{template.name}:{line}"), rng, template.domain)
        for line, template in enumerate(_schedule(seen, plain, dev_size, rng), 1)
    ]
    rng = random.Random(f"{seed} test")
    exam = [(template, GROUP_SEEN) for template in _schedule(seen, plain, test_size - new_size - held_out_size, rng)]
    exam += [(template, GROUP_NEW) for template in _schedule(new, plain_new, new_size, rng)]
    exam += [(template, GROUP_HELD_OUT) for template in _schedule(held_out, [], held_out_size, rng)]
    test = [
        _ask(_write(template, pools["test"], rng, f"demo-test/{template.name}:{line}"), rng, group)
        for line, (template, group) in enumerate(exam, 1)
    ]
    return DemoCorpus(
        Dataset("demo-train", train), Dataset("demo-dev", dev), Dataset("demo-test", test), words.HELD_OUT_TYPES
    )


def coarse_type(entity_type: str) -> str | None:
    """The coarse type that covers a fine type, if there is one."""
    return next((coarse for coarse, fine in words.COARSE.items() if entity_type in fine), None)


def _load(kind: str, blocks: dict[str, str]) -> list[_Template]:
    """The templates of one kind; `blocks` maps a domain (a type, for held-out ones) to lines."""
    return [
        _Template(f"{domain}/{kind}-{line:02d}", domain, pattern)
        for domain, block in blocks.items()
        for line, pattern in enumerate(block.strip().splitlines(), 1)
    ]


def _schedule(
    patterns: Sequence[_Template], plain: Sequence[_Template], size: int, rng: random.Random
) -> list[_Template]:
    """`size` templates in random order, PLAIN_SHARE of them plain, each about equally often within its kind."""
    plain_size = round(size * PLAIN_SHARE) if plain else 0
    chosen = _rounds(patterns, size - plain_size, rng) + _rounds(plain, plain_size, rng)
    rng.shuffle(chosen)
    return chosen


def _rounds(patterns: Sequence[_Template], size: int, rng: random.Random) -> list[_Template]:
    chosen: list[_Template] = []
    while len(chosen) < size:
        chosen += rng.sample(patterns, min(len(patterns), size - len(chosen)))
    return chosen


def _with_nouns(template: _Template, rng: random.Random) -> _Template:
    """The template with each $kind replaced by a type of that kind, a different one for each variable."""
    nouns: dict[str, str] = {}
    for variable in _NOUN.finditer(template.pattern):
        if variable[0] not in nouns:
            nouns[variable[0]] = rng.choice(
                [noun for noun in words.BROAD_TYPES[variable[1]] if noun not in nouns.values()]
            )
    return replace(template, pattern=_NOUN.sub(lambda variable: nouns[variable[0]], template.pattern))


def _write(template: _Template, pools: Pools, rng: random.Random, sentence_id: str) -> Example:
    """A sentence from a template, with every entity at its fine and at its coarse type."""
    text = ""
    spans: list[tuple[int, int, str]] = []
    last = 0
    for piece in _PIECE.finditer(template.pattern):
        text += template.pattern[last : piece.start()]
        last = piece.end()
        if piece["slot"]:
            name = _fresh_name(piece["slot"], pools, rng, [text[start:end] for start, end, _ in spans])
            spans.append((len(text), len(text) + len(name), piece["slot"]))
            text += name
        elif piece["options"]:
            text += rng.choice(piece["options"].split("|"))
        else:
            text += rng.choice(words.FILLERS[piece["filler"]])
    text += template.pattern[last:]
    text = text[0].upper() + text[1:]

    split = split_words(text)
    starts = {word.start: index for index, word in enumerate(split)}
    ends = {word.end: index for index, word in enumerate(split)}
    entities: list[Entity] = []
    for start, end, label in spans:
        entities += [(starts[start], ends[end], level) for level in _levels(label)]
    return Example(
        words=[word.text for word in split],
        entities=entities,
        id=sentence_id,
        text=text,
        offsets=[(word.start, word.end) for word in split],
        types=None,
        group=template.domain,
    )


def _fresh_name(entity_type: str, pools: Pools, rng: random.Random, used: list[str]) -> str:
    """A name that the sentence does not have yet."""
    while (name := draw_name(entity_type, pools, rng)) in used:
        pass
    return name


def _levels(entity_type: str) -> Iterator[str]:
    yield entity_type
    if (coarse := coarse_type(entity_type)) is not None:
        yield coarse


def _ask(example: Example, rng: random.Random, group: str) -> Example:
    """The same sentence with the types to ask for, and only the entities of those types.

    Each coarse type is asked for as a whole in COARSE_SHARE of the sentences, else only its fine types may be. An
    entity's type is left out with probability UNASKED_SHARE. The other types asked are first ones whose names look like
    those of the sentence, then any.
    """
    held_out = group == GROUP_HELD_OUT
    fine = [label for labels in words.DOMAINS.values() for label in labels]
    if held_out:
        fine += words.HELD_OUT_TYPES
    merged = {coarse for coarse in words.COARSE if rng.random() < COARSE_SHARE}
    if held_out:
        merged -= {coarse_type(label) for label in words.HELD_OUT_TYPES}
    vocabulary = list(dict.fromkeys(_level(label, merged) for label in fine))

    present = list(dict.fromkeys(_level(label, merged) for _, _, label in example.entities if label in words.SHAPES))
    asked = [label for label in present if label in words.HELD_OUT_TYPES or rng.random() >= UNASKED_SHARE]
    absent = [label for label in vocabulary if label not in present]
    rng.shuffle(absent)
    look_alikes = [label for label in absent if any(alikeness(label, other) >= ALIKE for other in present)]
    negatives = rng.randint(*NEGATIVES)
    asked += list(dict.fromkeys(look_alikes[: negatives - 1] + absent))[:negatives]
    rng.shuffle(asked)
    return Example(
        words=example.words,
        entities=[entity for entity in example.entities if entity[2] in asked],
        id=example.id,
        text=example.text,
        offsets=example.offsets,
        types=tuple(asked),
        group=group,
    )


def _level(label: str, merged: set[str]) -> str:
    """The label itself, or its coarse type if that is asked for as a whole."""
    coarse = coarse_type(label)
    return coarse if coarse in merged and coarse is not None else label
