"""Entity names of the demo corpus, dealt to the splits so that no name of one split occurs in another."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Sequence

from . import training_words, words
from .kinds import FREQUENT_TYPES, RARE_TYPES, kind_of

SPLITS = ("train", "dev", "test")
SHARES = (0.62, 0.13, 0.25)
# full names and phrases are products of two lists; this many of each are plenty
POOL_LIMIT = 1500

_SLOT = re.compile(r"\{(\w+)\}")
_POOL_OF_MORE = re.compile(r"\{(word|given|surname)\}")

Pools = dict[str, list[str]]
Shapes = Sequence[tuple[float, str]]


def all_names() -> Pools:
    """Every base name that the word lists make, by pool, without regard to splits."""
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
    """Split -> pool -> names. A name that is in two pools goes to the same split in both; case is ignored.

    Parts of names (a first name, the noun of a phrase) are shared by the splits, whole names are not.
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
    """A name of one of these (weight, shape), filled from one split's pools."""
    shape = rng.choices([shape for _, shape in shapes], [weight for weight, _ in shapes])[0]
    return _SLOT.sub(lambda match: rng.choice(pools[match[1]]), shape)


def more_names(dealt: dict[str, Pools], rng: random.Random) -> Pools:
    """The pools that training has beside its share, without the names that another split has."""
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
    """What training names look like: as those of dev and test, in more shapes, and those of the rare types.

    Names of one word come from `more_names` half of the time: of few words, each would be known by heart.
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
