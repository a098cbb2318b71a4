"""count_cut: what is lost of long texts, as packing cuts them and in windows, on texts made for it."""

import random

import pytest

from glimodern.data import Dataset, Example, asked_types
from glimodern.data.report import Cut, CutCounts
from glimodern.inputs.packer import PromptPacker
from glimodern.train.demo import train_tokenizer
from glimodern.train.limits import count_cut, own_types

TYPES = ["person", "place"]
SPECIAL = 2 + 1 + 2 * 2  # [CLS] and [SEP], <<SEP>>, and two tokens a type


@pytest.fixture(scope="module")
def tokenizer():
    """Words of one token each, but for "x" repeated: a token a letter."""
    tokenizer = train_tokenizer([["a", "b", "x"]] * 9, TYPES, vocab_size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<<ENT>>", "<<SEP>>"]})
    return tokenizer.backend_tokenizer


def make_packer(tokenizer, max_words: int, max_tokens: int | None, max_width: int = 3) -> PromptPacker:
    limits = {"max_width": max_width, "max_words": max_words, "max_tokens": max_tokens}
    return PromptPacker(tokenizer, ent_token="<<ENT>>", sep_token="<<SEP>>", **limits)


def count(packer: PromptPacker, *examples: Example) -> Cut:
    return count_cut(Dataset("d", list(examples)), [TYPES] * len(examples), packer)


def test_nothing_is_cut(tokenizer):
    packer = make_packer(tokenizer, 5, 5 + SPECIAL)
    example = Example(["a"] * 5, [(4, 4, "person")])
    assert count(packer, example, Example([], [])) == Cut(5, 5 + SPECIAL, CutCounts(), CutCounts())
    assert count(make_packer(tokenizer, 5, None), example) == Cut(5, None, CutCounts(), CutCounts())


def test_words_beyond_max_len(tokenizer):
    packer = make_packer(tokenizer, 5, None)
    entities = [
        (0, 1, "person"),
        (4, 5, "place"),  # reaches into the part that is cut
        (7, 7, "person"),
        (6, 9, "person"),  # wider than 3 words: counted elsewhere
        (7, 7, "river"),  # not asked for
        (9, 10, "person"),  # out of range
    ]
    assert count(packer, Example(["a"] * 10, entities)) == Cut(5, None, CutCounts(1, 5, 0, 2), CutCounts())


def test_words_beyond_the_encoder_s_limit(tokenizer):
    packer = make_packer(tokenizer, 8, 5 + SPECIAL)
    example = Example(["a"] * 10, [(5, 5, "person"), (9, 9, "place"), (0, 0, "place")])
    assert count(packer, example).as_read == CutCounts(1, 2, 3, 2)
    assert count(packer, example, example).as_read == CutCounts(2, 4, 6, 4)


def test_what_exceeds_a_window_is_lost_with_windows_too(tokenizer):
    packer = make_packer(tokenizer, 8, 5 + SPECIAL)
    (long,) = packer.tokenize([["x" * 6]])
    assert len(long.ids) == 6
    words = ["a"] * 6 + ["x" * 6, "a", "x" * 3, "x" * 3]
    entities = [(6, 6, "person"), (5, 7, "place"), (8, 9, "person"), (8, 8, "place"), (7, 7, "person")]
    cut = count(packer, Example(words, entities))
    assert cut.as_read == CutCounts(1, 2, 3, 5)
    # the word of six tokens, and the two entities with it; and one of two words of three tokens
    assert cut.with_windows == CutCounts(1, 0, 1, 3)


def test_labels_that_leave_no_room(tokenizer):
    packer = make_packer(tokenizer, 8, SPECIAL)
    cut = count(packer, Example(["a", "b"], [(0, 0, "person")]))
    assert cut.as_read == CutCounts(1, 0, 2, 1) and cut.with_windows == CutCounts(1, 0, 2, 1)


def test_as_packing_cuts(tokenizer):
    """The counts are those of the batches that training packs."""
    rng = random.Random(0)
    packer = make_packer(tokenizer, 20, 24 + SPECIAL)
    examples = []
    for _ in range(600):  # more than are counted at a time
        words = [rng.choice(["a", "b", "xx"]) for _ in range(rng.randint(0, 30))]
        starts = [rng.randrange(len(words)) for _ in range(3)] if words else []
        spans = [(start, min(start + rng.randrange(5), len(words) - 1), rng.choice(TYPES)) for start in starts]
        examples.append(Example(words, sorted(set(spans))))
    dataset = Dataset("d", examples)
    types = asked_types(dataset)
    cut = count_cut(dataset, types, packer).as_read
    batch = packer.pack([e.words for e in examples], types, [e.entities for e in examples])
    wide = sum(end - start >= 3 for e in examples for start, end, _ in e.entities)
    assert cut.texts == sum(words > 0 for words in batch.words_cut) > 50
    assert cut.words_beyond == sum(max(0, len(e.words) - 20) for e in examples) > 0
    assert cut.words_beyond + cut.words_tokens == sum(batch.words_cut) > cut.words_beyond
    assert cut.entities + wide == batch.entities_lost


def test_types_that_training_asks_at_least():
    examples = [Example(["a"], [(0, 0, "y"), (0, 0, "x"), (0, 0, "y")], types=("z", "x", "w")), Example(["a"], [])]
    assert own_types(Dataset("d", examples), 3) == [["y", "x", "z"], []]
