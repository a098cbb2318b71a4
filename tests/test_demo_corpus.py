"""The demo corpus keeps its promises: sizes, disjoint names, templates and types held out, and that it is hard."""

import hashlib
import math
import re
import time
from collections import Counter, defaultdict

import pytest

from glimodern.data.demo import (
    GROUP_HELD_OUT,
    GROUP_NEW,
    GROUP_SEEN,
    DemoCorpus,
    build_demo_corpus,
    clauses,
    templates,
    training_words,
    words,
)
from glimodern.data.demo.kinds import FREQUENT_TYPES, RARE_TYPES, alikeness, coarse_type
from glimodern.data.demo.names import SPLITS, deal_names
from glimodern.data.example import Dataset, Example
from glimodern.inputs.words import split_words

SLOT = re.compile(r"\{(\$?[\w ]+)\}")
BLOCKS = {
    "seen": templates.SEEN,
    "new": templates.NEW,
    "held-out": templates.HELD_OUT,
    "plain": templates.PLAIN,
    "plain-new": templates.PLAIN_NEW,
}
FINE = set(FREQUENT_TYPES)
RARE = {label for labels in RARE_TYPES.values() for label in labels}
# of a test template, what its own words are: no slot, no filler, no choice
LITERAL = re.compile(r"\{[^}]*\}|<[^>]*>|\[[^\]]*\]")


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    return build_demo_corpus()


def lines(block: str) -> list[str]:
    return block.strip().splitlines()


def template_of(example: Example) -> tuple[str, str, str]:
    """Of a dev or test sentence: domain, kind and pattern, from the id "demo-test/music/new-03:17"."""
    _, domain, rest = example.id.split(":")[0].split("/")
    kind, number = rest.rsplit("-", 1)
    return domain, kind, lines(BLOCKS[kind][domain])[int(number) - 1]


def slots_of(example: Example) -> list[str]:
    return SLOT.findall(template_of(example)[2])


def surface(example: Example, start: int, end: int) -> str:
    return " ".join(example.words[start : end + 1]).casefold()


def coarse(label: str) -> str:
    return coarse_type(label) or label


def names_in(dataset: Dataset) -> set[str]:
    return {surface(example, start, end) for example in dataset for start, end, _ in example.entities}


def test_sizes(corpus: DemoCorpus):
    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (24000, 400, 1000)
    assert len(words.DOMAINS) >= 5 and len(FINE) >= 20 and len(RARE) >= 700
    assert set(corpus.train.types) == FINE | RARE | set(words.COARSE)
    assert set(corpus.dev.types) == FINE | set(words.COARSE)
    kinds = (FINE, *map(set, RARE_TYPES.values()), words.COARSE.keys(), words.HELD_OUT_TYPES)
    assert len(set().union(*kinds)) == sum(map(len, kinds))
    for domain in words.DOMAINS:
        seen, new = lines(templates.SEEN[domain]), lines(templates.NEW[domain])
        assert len(set(seen)) >= 40 and len(set(new)) == 10
        assert all(SLOT.search(pattern) for pattern in seen + new)
        assert not any(SLOT.search(pattern) for pattern in lines(templates.PLAIN[domain]))
    for dataset in (corpus.train, corpus.dev, corpus.test):
        assert len({example.id for example in dataset}) == len(dataset)
    assert max(len(slots_of(example)) for dataset in (corpus.dev, corpus.test) for example in dataset) <= 4
    assert 0.04 <= sum(not slots_of(example) for example in corpus.test) / 1000 <= 0.08
    assert 0.05 <= sum(not example.entities for example in corpus.train) / 24000 <= 0.15


def test_dev_and_test_sets_stay_as_they_are(corpus: DemoCorpus):
    """F1 values of different versions of the training set and the recipe can be compared."""
    rows = [(e.id, e.text, e.entities, e.types, e.group) for dataset in (corpus.dev, corpus.test) for e in dataset]
    assert (
        hashlib.sha256(repr(rows).encode()).hexdigest()
        == "a0e91a2984c4b658c26c27d6c4bd8aae70e81fdf842b467027ea51e967f96df9"
    )


def test_slots_name_known_types():
    sources = [block for kind in BLOCKS.values() for block in kind.values()]
    sources += [clauses.CUES, clauses.MENTIONS, templates.BROAD, *clauses.CLAUSES.values(), *clauses.GENERIC.values()]
    slots = {slot for block in sources for slot in SLOT.findall(block)}
    assert {slot for slot in slots if not slot.startswith("$")} <= FINE | RARE | set(words.HELD_OUT_TYPES)
    assert set(clauses.CLAUSES) == FINE and set(clauses.GENERIC) == set(RARE_TYPES)
    for label, block in clauses.CLAUSES.items():
        assert len(set(lines(block))) >= 20
        assert all(label in SLOT.findall(line) for line in lines(block))


def test_every_type_is_frequent(corpus: DemoCorpus):
    train = Counter(label for example in corpus.train for *_, label in example.entities)
    test = Counter(label for example in corpus.test if example.group == GROUP_SEEN for *_, label in example.entities)
    assert min(train[label] for label in FINE) >= 400
    assert min(train[label] for label in RARE) >= 2
    assert min(test[label] for label in FINE) >= 5
    held_out = Counter(label for example in corpus.test for *_, label in example.entities)
    assert all(held_out[label] >= 50 for label in corpus.held_out_types)


def test_text_words_and_offsets_agree(corpus: DemoCorpus):
    for dataset in (corpus.train, corpus.dev, corpus.test):
        for example in dataset:
            split = split_words(example.text)
            assert [word.text for word in split] == example.words
            assert [(word.start, word.end) for word in split] == example.offsets
            assert example.text[0] == example.text[0].upper()
            assert dataset is corpus.train or example.text.endswith(".")
            assert not set("{}[]<>|$") & set(example.text) and "  " not in example.text
            assert all(0 <= start <= end < len(split) for start, end, _ in example.entities)


def test_spans_of_a_sentence_do_not_overlap(corpus: DemoCorpus):
    for dataset in (corpus.train, corpus.dev, corpus.test):
        for example in dataset:
            spans = sorted({(start, end) for start, end, _ in example.entities})
            assert all(left[1] < right[0] for left, right in zip(spans, spans[1:], strict=False))
            assert len(set(example.entities)) == len(example.entities)


def test_names_of_the_splits_are_disjoint(corpus: DemoCorpus):
    train, dev, test = (names_in(dataset) for dataset in (corpus.train, corpus.dev, corpus.test))
    assert not train & test and not train & dev and not dev & test


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_names_are_disjoint_for_any_seed(seed: int):
    corpus = build_demo_corpus(seed, train_size=2000, dev_size=200, test_size=500)
    train, dev, test = (names_in(dataset) for dataset in (corpus.train, corpus.dev, corpus.test))
    assert not train & test and not train & dev and not dev & test


def test_base_names_are_dealt_once():
    import random

    dealt = deal_names(random.Random(0))
    owners = defaultdict(set)
    for split in SPLITS:
        for pool in dealt[split].values():
            assert len(pool) >= 8
            for name in pool:
                owners[name.casefold()].add(split)
    assert all(len(splits) == 1 for splits in owners.values())


def test_a_fifth_of_the_test_sentences_use_new_templates(corpus: DemoCorpus):
    groups = Counter(example.group for example in corpus.test)
    assert groups == {GROUP_SEEN: 650, GROUP_NEW: 200, GROUP_HELD_OUT: 150}
    known = {template_of(example)[2] for example in corpus.dev}
    known |= {line for block in (*templates.SEEN.values(), *templates.PLAIN.values()) for line in lines(block)}
    for example in corpus.test:
        assert (template_of(example)[2] in known) == (example.group == GROUP_SEEN)
        assert (template_of(example)[1] in ("new", "plain-new")) == (example.group == GROUP_NEW)


@pytest.mark.parametrize("kind", ["new", "plain-new", "held-out"])
def test_no_training_sentence_contains_a_new_template(corpus: DemoCorpus, kind: str):
    """Neither alone nor beside other clauses, whatever stands in its slots."""
    text = "\n".join(example.text for example in corpus.train).casefold()
    for pattern in (line for block in BLOCKS[kind].values() for line in lines(block)):
        literals = [part.casefold() for part in LITERAL.split(pattern.removesuffix("."))]
        if max(literals, key=len) in text:
            found = re.search("[^\\n]+?".join(map(re.escape, literals)), text)
            assert not found, f"{pattern}: {found[0]}"


def test_held_out_types_are_only_in_their_group(corpus: DemoCorpus):
    held_out = set(corpus.held_out_types)
    assert len(held_out) == 2
    for dataset in (corpus.train, corpus.dev):
        assert not held_out & set(dataset.types)
    for example in corpus.train:
        assert not held_out & set(example.types)
        assert not any(start and example.words[start - 1].casefold() in held_out for start, *_ in example.entities)
    for example in corpus.test:
        assert bool(held_out & set(slots_of(example))) == (example.group == GROUP_HELD_OUT)
        assert example.group == GROUP_HELD_OUT or not held_out & set(example.types)
        if example.group == GROUP_HELD_OUT:
            assert held_out & {label for *_, label in example.entities}
    # zero-shot must be conceivable: the labels are ordinary words of the training text
    text = " ".join(example.text.casefold() for example in corpus.train)
    assert all(f" {label} " in text for label in held_out)


def test_training_annotation_is_complete(corpus: DemoCorpus):
    """Every capital inside a sentence is of an entity, but for months, days, nationalities and a few words."""
    plain = {
        *words.FILLERS["month"],
        *words.FILLERS["day"],
        *training_words.FILLERS["nationality"],
        "Dr",
        "I",
        "DJ",
        "X-ray",
    }
    plain |= {"English", "Middle", "Ages"}
    for example in corpus.train:
        labels = [label for *_, label in example.entities]
        assert set(labels) <= set(example.types)
        for start, end, label in example.entities:
            if coarse(label) != label:
                assert (start, end, coarse(label)) in example.entities
        inside = {i for start, end, _ in example.entities for i in range(start, end + 1)}
        for i, word in enumerate(example.words):
            first = i == 0 or example.words[i - 1] == "."
            assert i in inside or first or word in plain or not word[0].isupper(), example.text


def test_some_asked_types_are_hard(corpus: DemoCorpus):
    """Training asks types that a sentence mentions without a name, and types whose names look alike."""
    mentioned = alike = 0
    for example in corpus.train:
        fine = [label for *_, label in example.entities if label in FINE]
        absent = set(example.types) - {label for *_, label in example.entities}
        mentioned += any(f" {label} " in f" {example.text} " for label in absent)
        alike += any(alikeness(label, other) >= 0.4 for label in fine for other in absent & FINE)
    assert mentioned >= 1500
    assert alike >= 8000


def test_asked_types_decide_the_gold(corpus: DemoCorpus):
    for dataset in (corpus.dev, corpus.test):
        levels = set()
        for example in dataset:
            asked = set(example.types)
            assert len(asked) == len(example.types) >= 3
            assert not any(coarse(label) in asked for label in asked if coarse(label) != label)
            wanted = [label if label in asked else coarse(label) for label in slots_of(example)]
            assert Counter(label for *_, label in example.entities) == Counter(x for x in wanted if x in asked)
            levels |= {(label, coarse(label) in asked) for label in slots_of(example) if coarse(label) != label}
        covered = {label for label in FINE if coarse(label) != label}
        assert {(label, level) for label in covered for level in (True, False)} <= levels


def test_same_arguments_same_corpus(corpus: DemoCorpus):
    assert build_demo_corpus() == corpus
    small = build_demo_corpus(1, train_size=50, dev_size=20, test_size=30)
    assert small == build_demo_corpus(1, train_size=50, dev_size=20, test_size=30)
    assert small.train.examples != build_demo_corpus(2, train_size=50, dev_size=20, test_size=30).train.examples


def test_it_is_built_in_seconds():
    start = time.process_time()
    build_demo_corpus()
    assert time.process_time() - start < 6


@pytest.mark.parametrize("argument", ["train_size", "dev_size", "test_size"])
def test_a_size_below_one_is_an_error(argument: str):
    with pytest.raises(ValueError, match=argument):
        build_demo_corpus(**{argument: 0})


def test_alikeness():
    assert alikeness("surgeon", "patient") == pytest.approx(1)
    assert alikeness("surgeon", "person") > 0.9
    assert alikeness("disease", "programmer") == 0


# ---- difficulty: what a model that ignores the context, or the prompt, can reach at best


def test_many_names_have_several_types(corpus: DemoCorpus):
    for dataset, at_least in ((corpus.train, 500), (corpus.test, 60)):
        types = defaultdict(set)
        for example in dataset:
            for start, end, label in example.entities:
                if label in FINE:
                    types[surface(example, start, end)].add(label)
        assert sum(len(labels) >= 2 for labels in types.values()) >= at_least


def test_the_majority_type_of_a_name_is_often_wrong(corpus: DemoCorpus):
    """Even counted on the very mentions it is tested on, and with gold spans."""
    by_name = defaultdict(Counter)
    for example in corpus.train:
        for start, end, label in example.entities:
            if label in FINE:
                by_name[surface(example, start, end)][label] += 1
    ambiguous = [counts for counts in by_name.values() if len(counts) >= 2]
    correct = sum(max(counts.values()) for counts in ambiguous)
    assert correct / sum(sum(counts.values()) for counts in ambiguous) < 0.45


def features(example: Example, start: int, end: int) -> list[str]:
    span = example.words[start : end + 1]
    return [
        f"n={len(span)}",
        *(f"w={word}" for word in span),
        *(f"s={word[-3:]}" for word in span),
        f"c={span[0][0].isupper()}",
    ]


def test_a_model_that_ignores_the_context_fails(corpus: DemoCorpus):
    """Naive Bayes over the words, word ends and length of a gold span, told which types are asked."""
    seen, totals = defaultdict(Counter), Counter()
    for example in corpus.train:
        for start, end, label in example.entities:
            totals[label] += 1
            seen[label].update(features(example, start, end))
    sizes = {label: sum(counts.values()) for label, counts in seen.items()}

    def score(label: str, found: list[str]) -> float:
        terms = (math.log((seen[label][f] + 0.1) / (sizes[label] + 1000)) for f in found)
        return math.log(totals[label]) + sum(terms)

    right = total = 0
    for example in corpus.test:
        if example.group == GROUP_SEEN:
            for start, end, label in example.entities:
                found = features(example, start, end)
                right += max(example.types, key=lambda asked: score(asked, found)) == label
                total += 1
    print(f"context ignored, gold spans: {right / total:.3f} of {total}")
    assert right / total < 0.6


def test_a_model_that_ignores_the_prompt_fails(corpus: DemoCorpus):
    """One that finds every entity and its fine type, but returns them whatever is asked: exact-match F1."""
    right = found = gold = 0
    for example in corpus.test:
        if example.group == GROUP_SEEN:
            found += len(slots_of(example))
            gold += len(example.entities)
            right += sum(label not in words.COARSE for *_, label in example.entities)
    f1 = 2 * right / (found + gold)
    print(f"prompt ignored, perfect otherwise: F1 {f1:.3f}")
    assert f1 < 0.68
