"""glimodern.data.metrics against a second scorer written here from the definition, and against the public gliner's."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.data.metrics import Counts, Scores, score

GOLD = [[(0, 1, "person"), (3, 3, "city")], [], [(2, 4, "person")]]
PREDICTED = [[(0, 1, "person"), (3, 3, "person")], [(0, 0, "city")], [(2, 4, "person")]]


def independent_f1(gold, predicted, label=None, sentences=None):
    """Precision, recall and F1 by counting one entity at a time; of one label and of some sentences if given."""
    right = wrong = missed = 0
    for number in range(len(gold)) if sentences is None else sentences:
        wanted, given_ = [], []
        for source, unique in ((gold[number], wanted), (predicted[number], given_)):
            for entity in source:
                if entity not in unique and label in (None, entity[2]):
                    unique.append(entity)
        for entity in given_:
            if entity in wanted:
                right += 1
            else:
                wrong += 1
        for entity in wanted:
            if entity not in given_:
                missed += 1
    precision = right / (right + wrong) if right + wrong > 0 else 0.0
    recall = right / (right + missed) if right + missed > 0 else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return precision, recall, f1


def prf(counts: Counts) -> tuple[float, float, float]:
    return counts.precision, counts.recall, counts.f1


def random_data(rng: random.Random):
    def entity():
        start = rng.randint(0, 5)
        return start, start + rng.randint(0, 2), rng.choice("abc")

    gold = [[entity() for _ in range(rng.randint(0, 5))] for _ in range(rng.randint(0, 8))]
    predicted = [
        [one for one in sentence if rng.random() < 0.6] + [entity() for _ in range(rng.randint(0, 3))]
        for sentence in gold
    ]
    return gold, predicted, [rng.choice(["x", "y", None]) for _ in gold]


def test_against_an_independent_scorer():
    rng = random.Random(5)
    for _ in range(300):
        gold, predicted, groups = random_data(rng)
        scores = score(gold, predicted, groups=groups)
        assert prf(scores.micro) == pytest.approx(independent_f1(gold, predicted))
        labels = {entity[2] for sentence in gold + predicted for entity in sentence}
        assert list(scores.per_type) == sorted(labels)
        per_type = {label: independent_f1(gold, predicted, label) for label in labels}
        for label in labels:
            assert prf(scores.per_type[label]) == pytest.approx(per_type[label])
        count = max(len(labels), 1)
        assert scores.macro_precision == pytest.approx(sum(one[0] for one in per_type.values()) / count)
        assert scores.macro_recall == pytest.approx(sum(one[1] for one in per_type.values()) / count)
        assert scores.macro_f1 == pytest.approx(sum(one[2] for one in per_type.values()) / count)
        names = {name for name in groups if name is not None}
        assert set(scores.per_group) == names
        per_group = {
            name: independent_f1(gold, predicted, sentences=[i for i, group in enumerate(groups) if group == name])
            for name in names
        }
        for name in names:
            assert prf(scores.per_group[name]) == pytest.approx(per_group[name])
        if names:
            mean = sum(one[2] for one in per_group.values()) / len(names)
            assert scores.group_average_f1 == pytest.approx(mean)
        else:
            assert scores.group_average_f1 is None


@pytest.mark.filterwarnings("ignore:.*ill-defined")
def test_against_the_public_evaluator():
    evaluator = pytest.importorskip("gliner.evaluation.evaluator", reason="needs the extra peers (gliner)")
    rng = random.Random(6)
    for _ in range(200):
        gold, predicted, _ = random_data(rng)
        public = evaluator.BaseNEREvaluator(gold, predicted)
        theirs = public.compute_prf(*public.transform_data())
        ours = score(gold, predicted).micro
        assert prf(ours) == pytest.approx((theirs["precision"], theirs["recall"], theirs["f_score"]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    gold=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from("ab")), max_size=6)),
    seed=st.integers(0, 99),
)
def test_gold_against_itself_is_perfect_in_any_order(gold, seed):
    shuffled = [random.Random(seed).sample(sentence, len(sentence)) for sentence in gold]
    scores = score(gold, shuffled)
    assert scores.micro.f1 == (1.0 if any(gold) else 0.0)
    assert all(counts.f1 == 1.0 for counts in scores.per_type.values())


def test_a_worked_example():
    scores = score(GOLD, PREDICTED, groups=["news", "news", "science"])
    assert scores.micro == Counts(correct=2, predicted=4, gold=3)
    assert scores.per_type == {"city": Counts(0, 1, 1), "person": Counts(2, 3, 2)}
    assert scores.per_group == {"news": Counts(1, 3, 2), "science": Counts(1, 1, 1)}
    assert scores.micro.f1 == pytest.approx(4 / 7)
    assert scores.macro_f1 == pytest.approx((0 + 4 / 5) / 2)
    assert scores.group_average_f1 == pytest.approx((2 / 5 + 1) / 2)
    assert list(score(GOLD, PREDICTED, groups=["science", "news", "arts"]).per_group) == ["science", "news", "arts"]
    assert score(GOLD, PREDICTED, groups=["", None, ""]).per_group == {"": Counts(2, 3, 3)}


def test_duplicates_count_once():
    scores = score([[(0, 0, "a"), (0, 0, "a")]], [[(0, 0, "a")] * 3 + [(1, 1, "a")] * 2])
    assert scores.micro == Counts(correct=1, predicted=2, gold=1)


def test_nothing_gold_nothing_predicted_no_sentences():
    entity = [(0, 0, "a")]
    assert prf(score([[]], [[]]).micro) == (0.0, 0.0, 0.0)
    assert score([[]], [entity]).micro == Counts(0, 1, 0)
    assert score([entity], [[]]).micro == Counts(0, 0, 1)
    assert score([entity], [[]]).macro_f1 == 0.0
    empty = score([], [], groups=[])
    assert empty == Scores(micro=Counts(0, 0, 0), per_type={}, per_group={}, sentences=0)
    assert empty.group_average_f1 is None and empty.macro_f1 == 0.0
    assert score([[]], [[]], groups=["empty"]).per_group == {"empty": Counts(0, 0, 0)}


def test_labels_are_compared_exactly():
    assert score([[(0, 0, "Person")]], [[(0, 0, "person")]]).micro.correct == 0


def test_to_dict_is_json_and_table_renders():
    from rich.console import Console

    scores = score(GOLD, PREDICTED, groups=["news", "news", None])
    again = json.loads(json.dumps(scores.to_dict()))
    assert again["micro"] == {"precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "correct": 2, "predicted": 4, "gold": 3}
    assert again["per_group"]["news"]["gold"] == 2
    assert again["sentences"] == 3
    assert again["macro"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5})
    assert again["group_average_f1"] == pytest.approx(2 / 5)
    assert list(again["per_type"]) == ["city", "person"] and again["per_type"]["person"]["correct"] == 2

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(scores.table("a [bold]title"))
    text = console.export_text()
    assert "a [bold]title" in text and "57.1" in text and "person" in text and "news" in text

    many = score([[(0, 0, f"type {n}") for n in range(9)]], [[]])
    console.print(many.table(max_types=2))
    text = console.export_text()
    assert "7 more types" in text and "type 1" in text and "type 2" not in text
    console.print(many.table(max_types=9))
    text = console.export_text()
    assert "more types" not in text and "type 8" in text


def test_rows_of_the_table():
    """The most frequent type first, then the groups as they came, in percent."""
    table = score(GOLD, PREDICTED, groups=["science", "science", "news"]).table()
    assert [column.header for column in table.columns] == ["", "precision", "recall", "F1", "gold", "predicted"]
    assert list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)) == [
        ("person", "66.7", "100.0", "80.0", "2", "3"),
        ("city", "0.0", "0.0", "0.0", "1", "1"),
        ("science", "33.3", "50.0", "40.0", "2", "3"),
        ("news", "100.0", "100.0", "100.0", "1", "1"),
        ("average of groups", "", "", "70.0", "", ""),
        ("micro", "50.0", "66.7", "57.1", "3", "4"),
        ("macro", "33.3", "50.0", "40.0", "", ""),
    ]


@pytest.mark.parametrize(
    ("gold", "predicted", "groups", "message"),
    [
        ([[]], [], None, "predicted: expected one list"),
        ([[]], [[]], [], "groups: expected one name"),
        ([[]], [[(0, 0, "a", 0.9)]], None, r"predicted\[0\]: expected entities .*, got \(0, 0, 'a', 0.9\)"),
        (
            [[], [(0, 0)]],
            [[], []],
            None,
            r"gold\[1\]: expected entities \(first word, last word, label\), got \(0, 0\)",
        ),
    ],
)
def test_bad_input(gold, predicted, groups, message):
    with pytest.raises(ValueError, match=message):
        score(gold, predicted, groups=groups)


def test_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from glimodern.data.metrics import score; print(score([[]], [[]]).micro)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
