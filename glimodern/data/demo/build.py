"""Generation of the demo corpus: training, dev and test sentences with exact word offsets."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from glimodern.inputs.words import Entity, split_words

from ..example import Dataset, Example
from . import templates, training_words, words
from .compose import Composer
from .kinds import (
    ALIKE,
    FREQUENT_TYPES,
    RARE_TYPES,
    alikeness,
    coarse_type,
    kind_of,
    look_alikes,
)
from .names import Pools, Shapes, deal_names, draw_name, more_names, train_shapes

GROUP_SEEN = "seen templates"
GROUP_NEW = "new templates"
GROUP_HELD_OUT = "held-out types"

NEW_SHARE = 0.2
HELD_OUT_SHARE = 0.15
PLAIN_SHARE = 0.06
# fractions of the kinds of training sentences (see Composer)
TRAIN_SHARES = {"seen": 0.44, "clause": 0.28, "rare": 0.22, "plain": 0.06}

# choice of the types of dev and test sentences (see _with_types)
COARSE_SHARE = 0.35
UNASKED_SHARE = 0.2
NEGATIVES = (3, 6)

_TOKEN = re.compile(r"\{(?P<slot>[\w ]+)\}|\[(?P<options>[^\]]+)\]|<(?P<filler>\w+)>")


TRAIN_SHAPES = train_shapes()
TRAIN_FILLERS = {**words.FILLERS, **training_words.FILLERS}


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """The three splits, and the types that only the test split has.

    train: Complete annotation at the fine and the coarse level: a "surgeon" is also a "person", as two entities over
           the same words. For any choice of types, the entities with those labels are complete. `types` are the
           sentence's own types and some that are easily confused with them. `group` is the domain, or "broad" for
           sentences about rare types, which dev and test do not have.
    dev, test: `types` are the types to find, at one level for each coarse type; `entities` are only those of these
           types, so a span has one label. No name occurs in another split.
    dev:   Types and templates of training; `group` is the domain.
    test:  `group` is GROUP_SEEN, GROUP_NEW (templates that are not in training or dev) or GROUP_HELD_OUT (sentences
           with an entity of `held_out_types`; only these have those types in `types`).
    """

    train: Dataset
    dev: Dataset
    test: Dataset
    held_out_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Template:
    """A sentence pattern. name: its domain, kind and line."""

    name: str
    domain: str
    pattern: str


def build_demo_corpus(
    seed: int = 0, *, train_size: int = 24000, dev_size: int = 400, test_size: int = 1000
) -> DemoCorpus:
    """Generate the corpus; the same arguments give the same corpus on every machine.

    train_size, dev_size, test_size: number of sentences. Raises ValueError for a size below 1.
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1 sentence, got {size}; the default is 400 or more")
    pools = deal_names(random.Random(f"{seed} names"))
    train = _training_set(train_size, pools["train"] | more_names(pools, random.Random(f"{seed} more names")), seed)

    seen, plain = _load("seen", templates.SEEN), _load("plain", templates.PLAIN)
    new, plain_new = _load("new", templates.NEW), _load("plain-new", templates.PLAIN_NEW)
    held_out = _load("held-out", templates.HELD_OUT)
    new_size, held_out_size = round(test_size * NEW_SHARE), round(test_size * HELD_OUT_SHARE)

    rng = random.Random(f"{seed} dev")
    dev = [
        _with_types(_write(template, pools["dev"], rng, f"demo-dev/{template.name}:{line}"), rng, template.domain)
        for line, template in enumerate(_schedule(seen, plain, dev_size, rng), 1)
    ]
    rng = random.Random(f"{seed} test")
    seen_size = test_size - new_size - held_out_size
    test_templates = [(template, GROUP_SEEN) for template in _schedule(seen, plain, seen_size, rng)]
    test_templates += [(template, GROUP_NEW) for template in _schedule(new, plain_new, new_size, rng)]
    test_templates += [(template, GROUP_HELD_OUT) for template in _schedule(held_out, [], held_out_size, rng)]
    test = [
        _with_types(_write(template, pools["test"], rng, f"demo-test/{template.name}:{line}"), rng, group)
        for line, (template, group) in enumerate(test_templates, 1)
    ]
    return DemoCorpus(
        Dataset("demo-train", train), Dataset("demo-dev", dev), Dataset("demo-test", test), words.HELD_OUT_TYPES
    )


def _training_set(size: int, pools: Pools, seed: int) -> list[Example]:
    rng = random.Random(f"{seed} train")
    composer = Composer(rng)
    draw = {
        "seen": composer.seen_sentence,
        "clause": composer.clause_sentence,
        "rare": composer.rare_sentence,
        "plain": composer.plain_sentence,
    }
    examples = []
    for line, kind in enumerate(rng.choices(list(TRAIN_SHARES), list(TRAIN_SHARES.values()), k=size), 1):
        pattern = draw[kind]()
        template = _Template(f"{pattern.domain}/{kind}", pattern.domain, pattern.text)
        example = _write(template, pools, rng, f"demo-train/{template.name}:{line}", TRAIN_SHAPES, TRAIN_FILLERS)
        examples.append(_with_hard_types(example, pattern.unnamed, rng))
    return examples


def _with_hard_types(example: Example, unnamed: Sequence[str], rng: random.Random) -> Example:
    """Set `types`: the sentence's own types, types that it mentions without an entity, and types with similar names."""
    own = list(dict.fromkeys(label for _, _, label in example.entities))
    types = [*own, *unnamed]
    for label in [label for label in own if label not in words.COARSE][:2]:
        if label not in FREQUENT_TYPES and rng.random() < 0.5:
            types.append(rng.choice(RARE_TYPES[kind_of(label)]))
        types += rng.sample(look_alikes(label), min(1, len(look_alikes(label))))
    return replace(example, types=tuple(dict.fromkeys(types)))


def _load(kind: str, blocks: dict[str, str]) -> list[_Template]:
    """Return the templates of one kind. blocks: {domain: lines}; for held-out types, {type: lines}."""
    return [
        _Template(f"{domain}/{kind}-{line:02d}", domain, pattern)
        for domain, block in blocks.items()
        for line, pattern in enumerate(block.strip().splitlines(), 1)
    ]


def _schedule(
    patterns: Sequence[_Template], plain: Sequence[_Template], size: int, rng: random.Random
) -> list[_Template]:
    """Draw `size` templates in random order, a fraction PLAIN_SHARE of them plain; all are about equally frequent."""
    plain_size = round(size * PLAIN_SHARE) if plain else 0
    chosen = _rounds(patterns, size - plain_size, rng) + _rounds(plain, plain_size, rng)
    rng.shuffle(chosen)
    return chosen


def _rounds(patterns: Sequence[_Template], size: int, rng: random.Random) -> list[_Template]:
    """Draw `size` templates; every template is drawn once before any is drawn again."""
    chosen: list[_Template] = []
    while len(chosen) < size:
        chosen += rng.sample(patterns, min(len(patterns), size - len(chosen)))
    return chosen


def _write(
    template: _Template,
    pools: Pools,
    rng: random.Random,
    sentence_id: str,
    shapes: Mapping[str, Shapes] = words.SHAPES,
    fillers: Mapping[str, Sequence[str]] = words.FILLERS,
) -> Example:
    """Fill a template to a sentence; every entity is annotated with its fine and with its coarse type."""
    text = ""
    spans: list[tuple[int, int, str]] = []
    last = 0
    for token in _TOKEN.finditer(template.pattern):
        text += template.pattern[last : token.start()]
        last = token.end()
        if token["slot"]:
            name = _fresh_name(shapes[token["slot"]], pools, rng, [text[start:end] for start, end, _ in spans])
            spans.append((len(text), len(text) + len(name), token["slot"]))
            text += name
        elif token["options"]:
            text += rng.choice(token["options"].split("|"))
        else:
            text += rng.choice(fillers[token["filler"]])
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


def _fresh_name(shapes: Shapes, pools: Pools, rng: random.Random, used: list[str]) -> str:
    """Draw a name that the sentence does not contain yet."""
    while (name := draw_name(shapes, pools, rng)) in used:
        pass
    return name


def _levels(entity_type: str) -> Iterator[str]:
    yield entity_type
    if (coarse := coarse_type(entity_type)) is not None:
        yield coarse


def _with_types(example: Example, rng: random.Random, group: str) -> Example:
    """Choose the `types` of a dev or test sentence, and keep only the entities of these types.

    With probability COARSE_SHARE a coarse type replaces all its fine types; otherwise only the fine types may be
    chosen. An entity's type is left out with probability UNASKED_SHARE, held-out types excepted. Negatives are added:
    first types whose names look like those of the sentence, then any.
    """
    held_out = group == GROUP_HELD_OUT
    fine = list(FREQUENT_TYPES)
    if held_out:
        fine += words.HELD_OUT_TYPES
    merged = {coarse for coarse in words.COARSE if rng.random() < COARSE_SHARE}
    if held_out:
        merged -= {coarse_type(label) for label in words.HELD_OUT_TYPES}
    vocabulary = list(dict.fromkeys(_level(label, merged) for label in fine))

    present = list(dict.fromkeys(_level(label, merged) for _, _, label in example.entities if label in words.SHAPES))
    types = [label for label in present if label in words.HELD_OUT_TYPES or rng.random() >= UNASKED_SHARE]
    absent = [label for label in vocabulary if label not in present]
    rng.shuffle(absent)
    look_alikes = [label for label in absent if any(alikeness(label, other) >= ALIKE for other in present)]
    negatives = rng.randint(*NEGATIVES)
    types += list(dict.fromkeys(look_alikes[: negatives - 1] + absent))[:negatives]
    rng.shuffle(types)
    return Example(
        words=example.words,
        entities=[entity for entity in example.entities if entity[2] in types],
        id=example.id,
        text=example.text,
        offsets=example.offsets,
        types=tuple(types),
        group=group,
    )


def _level(label: str, merged: set[str]) -> str:
    """Return the coarse type of a label if it is in `merged`, else the label itself."""
    coarse = coarse_type(label)
    return coarse if coarse in merged and coarse is not None else label
