"""sample_types and token_batches."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.data import Dataset, Example, sample_types, token_batches, with_asked_types

LABELS = ["person", "Person", "city", "CITY ", "river", "tool", "gene", "song", "Song"]


def example(*labels: str, types: tuple[str, ...] | None = None) -> Example:
    return Example(["w"] * max(1, len(labels)), [(i, i, label) for i, label in enumerate(labels)], types=types)


def key(label: str) -> str:
    return label.strip().casefold()


examples = st.builds(
    lambda labels, types: example(*labels, types=None if types is None else tuple(types)),
    st.lists(st.sampled_from(LABELS), max_size=6),
    st.none() | st.lists(st.sampled_from(LABELS), max_size=4),
)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(examples, max_size=6),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.integers(0, 99),
)
def test_properties(batch: list[Example], max_types: int, ratio: float, shuffle: bool, drop: float, seed: int) -> None:
    asked = sample_types(
        batch, max_types=max_types, negative_ratio=ratio, shuffle=shuffle, drop=drop, rng=random.Random(seed)
    )
    assert len(asked) == len(batch)
    everything = {key(label) for item in batch for label in (*(e[2] for e in item.entities), *(item.types or ()))}
    for item, types in zip(batch, asked, strict=True):
        gold = {label for _, _, label in item.entities}
        own = gold | set(item.types or ())
        negatives = [label for label in types if label not in own]
        assert len(set(types)) == len(types) <= max_types
        assert not {key(label) for label in negatives} & {key(label) for label in own}
        assert len({key(label) for label in negatives}) == len(negatives)
        assert len(negatives) <= int(ratio * max(1, len(gold)) + 0.5)
        assert {key(label) for label in types} <= everything
        if own or (everything and ratio >= 0.5):
            assert types
        if drop == 0:
            assert len(gold & set(types)) == min(len(gold), max_types)
            if len(gold) < max_types:
                assert len(own & set(types)) == min(len(own), max_types)
            room = max_types - min(len(own), max_types)
            available = len(everything - {key(label) for label in own})
            assert len(negatives) == min(room, available, int(ratio * max(1, len(gold)) + 0.5))


def test_order_without_shuffle_and_seed() -> None:
    batch = [example("b", "a", "b", types=("c", "a")), example("d")]
    asked = sample_types(batch, negative_ratio=9, shuffle=False, rng=random.Random(0))
    assert asked[0] == ["b", "a", "c", "d"]
    assert asked[1][0] == "d" and sorted(asked[1][1:]) == ["a", "b", "c"]
    many = [example(*LABELS[i:]) for i in range(6)]
    twice = [sample_types(many, negative_ratio=1, drop=0.3, rng=random.Random(5)) for _ in range(2)]
    assert twice[0] == twice[1] != sample_types(many, negative_ratio=1, drop=0.3, rng=random.Random(6))


def test_as_many_negatives_as_asked_whatever_the_sentence_has() -> None:
    """A draw that meets the sentence's own types is no negative less."""
    batch = [example("a", "b", "c"), example("d", "e", "f")]
    for seed in range(20):
        asked = sample_types(batch, negative_ratio=1, rng=random.Random(seed))
        assert [sorted(types) for types in asked] == [list("abcdef")] * 2


def test_types_are_shuffled_by_default_and_25_at_most() -> None:
    rng = random.Random(0)
    orders = {tuple(sample_types([example("a", "b", "c")], negative_ratio=0, rng=rng)[0]) for _ in range(100)}
    assert len(orders) == 6
    (types,) = sample_types([example(*map(str, range(30)))], negative_ratio=0, rng=rng)
    assert len(types) == 25


def test_the_type_that_outlasts_all_drops_is_any_of_them() -> None:
    rng = random.Random(0)
    kept = [sample_types([example("a", "b", "c")], negative_ratio=0, drop=0.999, rng=rng)[0] for _ in range(100)]
    assert all(len(types) == 1 for types in kept) and {types[0] for types in kept} == {"a", "b", "c"}


def test_a_type_in_another_case_is_no_negative() -> None:
    asked = sample_types([example("STRASSE"), example(" stra\u00dfe ")], negative_ratio=9, rng=random.Random(0))
    assert asked == [["STRASSE"], [" stra\u00dfe "]]


@pytest.mark.parametrize(("limit", "wanted"), [(None, ("a", "b")), (2, ("a", "b")), (1, None)])
def test_asked_types_up_to_a_limit(limit: int | None, wanted: tuple[str, ...] | None) -> None:
    dataset = with_asked_types(Dataset("d", [example("a"), example("b")]), limit)
    assert [item.types for item in dataset] == [wanted] * 2


def test_zero_entity_sentences_get_only_negatives() -> None:
    asked = sample_types([example(), example("a", "b")], negative_ratio=1, rng=random.Random(0))
    assert len(asked[0]) == 1 and asked[0][0] in ("a", "b")
    assert sorted(asked[1]) == ["a", "b"]
    assert sample_types([example(), example()], negative_ratio=5, rng=random.Random(0)) == [[], []]
    assert sample_types([], negative_ratio=5, rng=random.Random(0)) == []


def test_choices_are_fair() -> None:
    """Each candidate equally often, negatives chosen anew for each example, each type dropped as often as asked."""
    rng = random.Random(1)
    batch = [example("a"), example("b"), example("c", "d", "e")]
    first: Counter[str] = Counter()
    gold: Counter[str] = Counter()
    dropped = different = 0
    for _ in range(3000):
        asked = sample_types(batch, negative_ratio=1, shuffle=False, rng=rng)
        first[asked[0][1]] += 1
        different += asked[0][1] != asked[1][1]
        gold.update(sample_types(batch, max_types=2, negative_ratio=1, rng=rng)[2])
        dropped += 5 - len(sample_types([example("a", "b", "c", "d", "e")], negative_ratio=0, drop=0.2, rng=rng)[0])
    assert set(first) == {"b", "c", "d", "e"} and all(abs(count - 750) < 120 for count in first.values())
    assert set(gold) == {"c", "d", "e"} and all(abs(count - 2000) < 150 for count in gold.values())
    assert different > 1500
    assert abs(dropped / 15000 - 0.2) < 0.02


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_types", {"max_types": 0, "negative_ratio": 1}),
        ("negative_ratio", {"negative_ratio": -1}),
        ("negative_ratio", {"negative_ratio": float("nan")}),
        ("drop", {"negative_ratio": 1, "drop": 1.0}),
        ("drop", {"negative_ratio": 1, "drop": -0.1}),
    ],
)
def test_sample_types_checks_its_arguments(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        sample_types([], rng=random.Random(0), **options)  # type: ignore[arg-type]


limits = st.tuples(st.none() | st.integers(1, 60), st.none() | st.integers(1, 5)).filter(any)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 80), max_size=40), limits, st.none() | st.integers(0, 9))
def test_batches(lengths: list[int], limit: tuple[int | None, int | None], seed: int | None) -> None:
    tokens, size = limit
    rng = None if seed is None else random.Random(seed)
    batches = token_batches(lengths, batch_tokens=tokens, batch_size=size, rng=rng)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    if seed is None:
        assert order == sorted(order)
    for batch, following in zip(batches, [*batches[1:], None], strict=False):
        assert batch
        total = sum(lengths[index] for index in batch)
        assert size is None or len(batch) <= size
        assert tokens is None or total <= tokens or len(batch) == 1
        if following is not None:  # no batch ends before it is full
            full = size is not None and len(batch) == size
            assert full or (tokens is not None and total + lengths[following[0]] > tokens)


def test_a_batch_may_be_exactly_full() -> None:
    assert token_batches([2, 3, 5, 9, 5, 0, 1], batch_tokens=5, batch_size=None) == [[0, 1], [2], [3], [4, 5], [6]]
    assert token_batches([1] * 5, batch_tokens=None, batch_size=2) == [[0, 1], [2, 3], [4]]


def test_batches_are_seeded() -> None:
    def batches(seed: int) -> list[list[int]]:
        return token_batches(range(100), batch_tokens=200, batch_size=None, rng=random.Random(seed))

    assert batches(1) == batches(1) != batches(2)


def test_batches_check_their_arguments() -> None:
    with pytest.raises(ValueError, match="batch_tokens, batch_size: expected a limit"):
        token_batches([1], batch_tokens=None, batch_size=None)
    with pytest.raises(ValueError, match="batch_tokens: expected at least 1 or None, got 0"):
        token_batches([1], batch_tokens=0, batch_size=1)
    with pytest.raises(ValueError, match="batch_size: expected at least 1 or None, got 0"):
        token_batches([1], batch_tokens=1, batch_size=0)
    with pytest.raises(ValueError, match="lengths: expected numbers >= 0, got -1 at index 1"):
        token_batches([1, -1], batch_tokens=9, batch_size=None)
