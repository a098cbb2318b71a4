"""Entity names of the demo corpus, divided among the splits so that no name occurs in two splits."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence

from . import training_words, words
from .kinds import FREQUENT_TYPES, RARE_TYPES, kind_of

SPLITS = ("train", "dev", "test")
SHARES = (0.62, 0.13, 0.25)
POOL_LIMIT = 1500  # names per pool; full names and phrases are products of two lists, with more names than needed

_SLOT = re.compile(r"\{(\w+)\}")
_POOL_OF_MORE = re.compile(r"\{(word|given|surname)\}")

Pools = dict[str, list[str]]
Shapes = Sequence[tuple[float, str]]


def all_names() -> Pools:
    """Return all base names made from the word lists, by pool, before the division into splits."""
    pairs = itertools.product
    return {
        "word": list(words.BRAND_WORDS),
        "given": list(words.GIVEN_NAMES),
        "surname": list(words.SURNAMES),
        "place": [stem + end for stem, end in pairs(words.PLACE_STEMS, words.PLACE_ENDS)],
        "coined": [stem + end for stem, end in pairs(words.COINED_STEMS, words.COINED_ENDS)],
        "phrase": [f"{adjective} {noun}" for adjective, noun in pairs(words.ADJECTIVES, words.NOUNS)],
        "full": [f"{first} {last}" for first, last in pairs(words.FIRST_NAMES, words.SURNAMES)],
        "ailment": [f"{part} {ailment}" for part, ailment in pairs(words.AILMENT_PARTS, words.AILMENTS)],
    }


def deal_names(rng: random.Random) -> dict[str, Pools]:
    """Divide the names among the splits at random; return {split: {pool: names}}.

    A name in two pools goes to the same split in both; case is ignored. Splits share parts of names (a first name, the
    noun of a phrase), but no whole names.
    """
    dealt: dict[str, Pools] = {split: {} for split in SPLITS}
    split_of: dict[str, str] = {}
    for pool, names in all_names().items():
        chosen = list(dict.fromkeys(names))
        rng.shuffle(chosen)
        fresh = [name for name in chosen[:POOL_LIMIT] if name.casefold() not in split_of]
        first, second = (round(len(fresh) * share) for share in itertools.accumulate(SHARES[:2]))
        for split, part in zip(SPLITS, (fresh[:first], fresh[first:second], fresh[second:]), strict=True):
            split_of.update((name.casefold(), split) for name in part)
        for split in SPLITS:
            dealt[split][pool] = [name for name in chosen[:POOL_LIMIT] if split_of[name.casefold()] == split]
    return dealt


def draw_name(shapes: Shapes, pools: Pools, rng: random.Random) -> str:
    """Draw a (weight, shape) by weight and fill the shape's slots from one split's pools."""
    shape = rng.choices([shape for _, shape in shapes], [weight for weight, _ in shapes])[0]
    return _SLOT.sub(lambda match: rng.choice(pools[match[1]]), shape)


def more_names(dealt: dict[str, Pools], rng: random.Random) -> Pools:
    """Return additional pools for training, without the names of other splits."""
    others = {name.casefold() for split in SPLITS[1:] for pool in dealt[split].values() for name in pool}

    def fresh(names: Iterable[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name.casefold() not in others]

    first = [*words.FIRST_NAMES, *training_words.FIRST_NAMES]
    last = [*words.SURNAMES, *training_words.SURNAMES]
    full = [f"{rng.choice(first)} {rng.choice(last)}" for _ in range(3 * POOL_LIMIT)]
    initials = [f"{rng.choice(first)[0]}. {rng.choice(last)}" for _ in range(POOL_LIMIT // 8)]
    real = {f"real_{kind}": fresh(names) for kind, names in training_words.REAL_PLACES.items()}
    return {
        "more_full": fresh([*full, *initials]),
        "more_surname": fresh(training_words.SURNAMES),
        "more_given": fresh([*training_words.GIVEN_NAMES, *first]),
        "more_word": fresh(training_words.BRAND_WORDS),
        **real,
    }


def train_shapes() -> dict[str, Shapes]:
    """Return the name shapes for training: those of dev and test, additional ones, and those of the rare types.

    Half of the one-word names come from `more_names`, because a model would memorise a small set of words.
    """
    shapes: dict[str, Shapes] = {}
    for label in FREQUENT_TYPES:
        person = kind_of(label) == "person"
        more = training_words.PERSON_SHAPES if person else training_words.MORE_SHAPES.get(label, ())
        shapes[label] = _with_more_pools((*words.SHAPES[label], *more))
    for kind, labels in RARE_TYPES.items():
        for label in labels:
            shapes[label] = _with_more_pools(
                [(weight, shape.replace("{type}", label.title())) for weight, shape in training_words.RARE_SHAPES[kind]]
            )
    return shapes


def _with_more_pools(shapes: Shapes) -> Shapes:
    halves = [(weight / 2, _POOL_OF_MORE.sub(r"{more_\1}", shape)) for weight, shape in shapes]
    return [*((weight / 2, shape) for weight, shape in shapes), *halves]
