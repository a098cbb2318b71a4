"""Long training texts: what is lost if they are cut, as packing cuts them, and the windows that take their place."""

import itertools
import random

import pytest

from glimodern.data import Dataset, Example, asked_types
from glimodern.data.report import Cut, CutCounts
from glimodern.inputs.batch import batch_of
from glimodern.inputs.label_packer import TextPacker
from glimodern.inputs.packer import PromptPacker
from glimodern.train.batches import TrainingBatches
from glimodern.train.config import DataConfig, parse_train_config
from glimodern.train.demo import train_tokenizer
from glimodern.train.limits import count_cut, group_budgets, own_types, prompt_budgets
from glimodern.train.windows import training_budgets, windowed

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
    return PromptPacker(tokenizer, as_batch=batch_of, ent_token="<<ENT>>", sep_token="<<SEP>>", **limits)


def count(packer: PromptPacker, *examples: Example) -> Cut:
    types = [TYPES] * len(examples)
    return count_cut(Dataset("d", list(examples)), types, packer, prompt_budgets(types, packer))


def expected(packer: PromptPacker, if_cut: CutCounts, with_windows: CutCounts) -> Cut:
    return Cut(packer.max_words, packer.max_tokens, if_cut, with_windows, "windows")


def test_nothing_is_cut(tokenizer):
    packer = make_packer(tokenizer, 5, 5 + SPECIAL)
    example = Example(["a"] * 5, [(4, 4, "person")])
    assert count(packer, example, Example([], [])) == expected(packer, CutCounts(), CutCounts())
    unlimited = make_packer(tokenizer, 5, None)
    assert count(unlimited, example) == expected(unlimited, CutCounts(), CutCounts())


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
    assert count(packer, Example(["a"] * 10, entities)) == expected(packer, CutCounts(1, 5, 0, 2), CutCounts())


def test_words_beyond_the_encoder_s_limit(tokenizer):
    packer = make_packer(tokenizer, 8, 5 + SPECIAL)
    example = Example(["a"] * 10, [(5, 5, "person"), (9, 9, "place"), (0, 0, "place")])
    assert count(packer, example).if_cut == CutCounts(1, 2, 3, 2)
    assert count(packer, example, example).if_cut == CutCounts(2, 4, 6, 4)


def test_what_exceeds_a_window_is_lost_with_windows_too(tokenizer):
    packer = make_packer(tokenizer, 8, 5 + SPECIAL)
    (long,) = packer.tokenize([["x" * 6]])
    assert len(long.ids) == 6
    words = ["a"] * 6 + ["x" * 6, "a", "x" * 3, "x" * 3]
    entities = [(6, 6, "person"), (5, 7, "place"), (8, 9, "person"), (8, 8, "place"), (7, 7, "person")]
    cut = count(packer, Example(words, entities))
    assert cut.if_cut == CutCounts(1, 2, 3, 5)
    # the entity of three words, eight tokens, and that of two words, six tokens; a word of six is cut, but read
    assert cut.with_windows == CutCounts(1, 0, 0, 2)


def test_labels_that_leave_no_room(tokenizer):
    packer = make_packer(tokenizer, 8, SPECIAL)
    cut = count(packer, Example(["a", "b"], [(0, 0, "person")]))
    assert cut.if_cut == CutCounts(1, 0, 2, 1) and cut.with_windows == CutCounts(1, 0, 2, 1)


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
    cut = count_cut(dataset, types, packer, prompt_budgets(types, packer)).if_cut
    batch = packer.pack([e.words for e in examples], types, [e.entities for e in examples])
    wide = sum(end - start >= 3 for e in examples for start, end, _ in e.entities)
    assert cut.texts == sum(words > 0 for words in batch.words_cut) > 50
    assert cut.words_beyond == sum(max(0, len(e.words) - 20) for e in examples) > 0
    assert cut.words_beyond + cut.words_tokens == sum(batch.words_cut) > cut.words_beyond
    assert cut.entities + wide == batch.entities_lost


def test_types_that_training_asks_at_least():
    examples = [Example(["a"], [(0, 0, "y"), (0, 0, "x"), (0, 0, "y")], types=("z", "x", "w")), Example(["a"], [])]
    assert own_types(Dataset("d", examples), 3) == [["y", "x", "z"], []]


# windows in place of long texts


def texts(tokenizer, count: int, longest: int, seed: int = 0) -> Dataset:
    """Texts of one to three tokens a word, with entities of one to three words."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        words = [rng.choice(["a", "b", "xx", "xxx", "."]) for _ in range(rng.randint(0, longest))]
        starts = sorted({rng.randrange(len(words)) for _ in range(len(words) // 4)}) if words else []
        spans = [(start, min(start + rng.randrange(3), len(words) - 1), rng.choice(TYPES)) for start in starts]
        types, places = rng.choice([None, ("place",)]), [(i, i + 1) for i in range(len(words))]
        examples.append(Example(words, spans, f"d:{number}", " ".join(words), places, types, "g"))
    return Dataset("d", examples)


@pytest.mark.parametrize(("max_words", "max_tokens"), [(20, 24 + SPECIAL), (12, 30), (9, None), (40, 40)])
def test_windows_hold_every_entity(tokenizer, max_words, max_tokens):
    """Each window fits, with the words, the gold spans, the types, the id and the group of its text."""
    packer = make_packer(tokenizer, max_words, max_tokens)
    dataset = texts(tokenizer, 300, 90)
    budgets = training_budgets(dataset, packer, DataConfig(train_data=("d",)))
    parts, tokens, part_budgets = windowed(dataset, packer, budgets)
    assert len(parts) > len(dataset) and parts.types == dataset.types
    found = {example.id: set() for example in dataset}
    read = {example.id: set() for example in dataset}
    whole = {example.id: example for example in dataset}
    for part, count, budget in zip(parts, tokens, part_budgets, strict=True):
        text, first = whole[part.id], part.offsets[0][0] if part.words else 0
        assert part.words == text.words[first : first + len(part.words)] and part.text is text.text
        assert (part.types, part.group) == (text.types, text.group)
        (only,) = packer.tokenize([part.words])
        assert len(part.words) <= max_words and count == len(only.ids) and (budget is None or count <= budget)
        read[part.id].update(range(first, first + len(part.words)))
        for start, end, label in part.entities:
            assert 0 <= start <= end < len(part.words)
            found[part.id].add((start + first, end + first, label))
    for example in dataset:
        assert found[example.id] == set(example.entities) and len(read[example.id]) == len(example.words)
    cut = count_cut(dataset, own_types(dataset, 25), packer, budgets, window_budgets=budgets)
    assert cut.with_windows == CutCounts() and cut.if_cut.entities > 0


def test_windows_of_one_text(tokenizer):
    packer = make_packer(tokenizer, 10, None)
    words = [f"w{i}" for i in range(16)]
    example = Example(words, [(0, 1, "person"), (8, 9, "place"), (14, 15, "person"), (3, 12, "person")], id="d:1")
    example = Example(
        *(getattr(example, name) for name in ("words", "entities", "id")), offsets=[(i, i + 1) for i in range(16)]
    )
    short = Example(["a"], [(0, 0, "place")])
    dataset = Dataset("d", [short, example, short])
    parts, tokens, _ = windowed(dataset, packer, [None] * 3)
    assert [part.words for part in parts] == [["a"], words[:10], words[6:], ["a"]]
    assert parts[0] is short and parts[-1] is short and len(tokens) == 4
    assert parts[1].entities == [(0, 1, "person"), (8, 9, "place")]
    assert parts[2].entities == [(2, 3, "place"), (8, 9, "person")]
    assert parts[2].offsets == example.offsets[6:] and {part.id for part in parts.examples[1:-1]} == {"d:1"}


def test_short_texts_are_left_alone(tokenizer):
    """The data set and its batches are those of the option "cut"."""
    packer = make_packer(tokenizer, 30, 200)
    dataset = texts(tokenizer, 60, 30)
    assert windowed(dataset, packer, training_budgets(dataset, packer, DataConfig())).dataset is dataset
    batches = [
        TrainingBatches(dataset, packer, parse_train_config(["--long-texts", way, "--batch-tokens", "300"]))
        for way in ("windows", "cut")
    ]
    assert batches[0].lengths == batches[1].lengths and batches[0].steps() == batches[1].steps()
    for one, other, _ in zip(batches[0].starting_at(0), batches[1].starting_at(0), range(10), strict=False):
        assert one[:2] == other[:2]
        assert one[2].input_ids.equal(other[2].input_ids) and one[2].positives.equal(other[2].positives)


@pytest.mark.parametrize("negative_ratio", ["1", "20"])
def test_no_batch_of_windows_is_cut(tokenizer, negative_ratio):
    """Whatever types are sampled: negatives without room are left out. Each rank has its share of the windows."""
    labels = [f"{'x' * (number % 9)} {number}" for number in range(30)]
    rng = random.Random(1)
    examples = []
    for number in range(60):
        words = [rng.choice(["a", "xx"]) for _ in range(rng.randint(1, 120))]
        examples.append(
            Example(words, [(i, i, rng.choice(labels)) for i in range(0, len(words), 20)], id=f"d:{number}")
        )
    dataset = Dataset("d", examples)
    packer = make_packer(tokenizer, 60, 90)
    config = parse_train_config(["--negative-ratio", negative_ratio, "--batch-size", "8"])
    ranks = [TrainingBatches(dataset, packer, config, rank, 2) for rank in range(2)]
    assert len(ranks[0].dataset) > 100
    seen, positives = [], 0
    for batches in ranks:
        for _, group, batch in batches.starting_at(0):
            if len(group) and len(seen) >= (batches.rank + 1) * len(batches.epoch(0)) // 2:
                break
            seen.append(group)
            positives += len(batch.positives)
            assert batch.words_cut == (0,) * len(group) and batch.entities_lost == 0
            assert max(batch.cu_seqlens.diff()) <= 90
    assert sorted({i for group in seen for i in group}) == list(range(len(ranks[0].dataset)))
    assert positives >= sum(len(example.entities) for example in examples)
    cut = TrainingBatches(dataset, packer, parse_train_config(["--long-texts", "cut"]))
    assert cut.dataset is dataset and sum(next(cut.starting_at(0))[2].words_cut) > 0


def test_labels_of_a_bi_encoder_take_no_room(tokenizer):
    packer = TextPacker(tokenizer, as_batch=batch_of, max_width=3, max_words=50, max_tokens=40)
    dataset = texts(tokenizer, 40, 90)
    assert training_budgets(dataset, packer, DataConfig()) == [38] * 40  # without [CLS] and [SEP]
    assert group_budgets([TYPES * 50], packer, 25) == [38]
    batches = TrainingBatches(dataset, packer, parse_train_config(["--batch-tokens", "200"]))
    assert len(batches.dataset) > 60
    for _, _, batch in itertools.islice(batches.starting_at(0), 20):
        assert not any(batch.words_cut) and batch.entities_lost == 0 and max(batch.cu_seqlens.diff()) <= 40


def test_budgets_leave_room_for_prompts(tokenizer):
    labels = ["person", "place", "x" * 30, "x" * 40]
    packer = make_packer(tokenizer, 100, 100)
    short, same, long, longer = packer.label_lengths(labels).tolist()
    assert short == same and long > 30 and longer > 40
    examples = [
        Example(["a"], [(0, 0, "person")], types=tuple(labels)),
        Example(["a"], [(0, 0, "person")], types=("place",)),
        Example(["a"], [(0, 0, labels[2])]),
        Example(["a"], []),
    ]
    dataset = Dataset("d", examples)
    empty = packer.text_budget(packer.prompt([]))
    half = 100 // 2 - 1  # without <<SEP>>

    def budgets(**data):
        return training_budgets(dataset, packer, DataConfig(**data))

    own = [2 * short + long + longer, 2 * short, long, 0]
    assert budgets(negative_ratio=0.0) == [empty - tokens for tokens in own]
    # one negative is likely to have as many tokens as the longest type, but a prompt has half of all tokens
    assert budgets() == [empty - own[0], empty - own[1] - longer, empty - half, empty - longer]
    assert budgets(max_types=1) == [empty - longer, empty - short, empty - long, empty - longer]
    assert training_budgets(dataset, make_packer(tokenizer, 100, None), DataConfig()) == [None] * 4
    groups = group_budgets([[f"{'x' * 9} {number}" for number in range(40)], ["person"], []], packer, 25)
    assert groups[0] >= empty - half and groups[1:] == [empty - short, empty]
    assert group_budgets([TYPES], packer, 1) == [empty - short]
