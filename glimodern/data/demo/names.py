"""Entity names of the demo corpus, dealt to the splits so that no name of one split occurs in another."""

from __future__ import annotations

import itertools
import random
import re

from . import words

SPLITS = ("train", "dev", "test")
SHARES = (0.62, 0.13, 0.25)
# full names and phrases are products of two lists; this many of each are plenty
POOL_LIMIT = 1500

_SLOT = re.compile(r"\{(\w+)\}")

Pools = dict[str, list[str]]


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


def draw_name(entity_type: str, pools: Pools, rng: random.Random) -> str:
    """A name for an entity of this type: one of its shapes, filled from one split's pools."""
    shapes = words.SHAPES[entity_type]
    shape = rng.choices([shape for _, shape in shapes], [weight for weight, _ in shapes])[0]
    return _SLOT.sub(lambda match: rng.choice(pools[match[1]]), shape)


def alikeness(label: str, other: str) -> float:
    """How much the names of two types look alike, in [0, 1]: the probability mass that their shapes share.

    A coarse type's shapes are those of its fine types, in equal parts.
    """
    mine, theirs = _shape_shares(label), _shape_shares(other)
    return sum(min(share, theirs.get(shape, 0.0)) for shape, share in mine.items())


def _shape_shares(label: str) -> dict[str, float]:
    fine = words.COARSE.get(label, (label,))
    shares: dict[str, float] = {}
    for entity_type in fine:
        total = sum(weight for weight, _ in words.SHAPES[entity_type]) * len(fine)
        for weight, shape in words.SHAPES[entity_type]:
            shares[shape] = shares.get(shape, 0.0) + weight / total
    return shares
