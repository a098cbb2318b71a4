"""Calibrated probabilities and thresholds: the fit on synthetic candidates, the file, the model's method, the command.

(tests/test_calibration.py is about the scales of int8.)
"""

import json
import math
import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern import GLiModern, calibrate
from glimodern.checkpoint.calibration_file import CALIBRATION_FILE, write_calibration
from glimodern.checkpoint.weights_fingerprint import weights_fingerprint
from glimodern.data import Dataset, Example, asked_types, load_dataset
from glimodern.data import calibration_fit as fitting
from glimodern.data.calibration import Calibration, Measured, logits, scaled, sigmoid
from glimodern.data.calibration_fit import COMMON, Candidates, Reliability, best_threshold, fit_scale, shrunk
from glimodern.data.metrics import score
from glimodern.inference.decode import greedy_decode
from glimodern.model import calibrating
from tests.conftest import WORDS, make_tiny_model, quietly_int8
from tests.fake_hub import in_place_of_the_hub

decode = partial(greedy_decode, flat=True)


def synthetic(sentences, seed, *, sharpness=1.0, shift=0.0, labels=6, spread=0.0):
    """Candidates of a model whose logits are `sharpness` times too large and `shift` too high; labels differ by spread.

    Gold entities do not overlap; candidates may.
    """
    rng = np.random.default_rng(seed)
    gold, scored = [], []
    for _ in range(sentences):
        golden, found = [], []
        for start in range(0, 20, 2):
            for number, extra in enumerate(np.linspace(-spread, spread, labels)):
                if rng.random() > 0.25:
                    continue
                probability = rng.beta(0.5, 1.5)
                entity = (start, start + int(rng.random() < 0.3), f"label {number}")
                free = not any(entity[0] <= end and entity[1] >= first for first, end, _ in golden)
                if rng.random() < probability and free:
                    golden.append(entity)
                value = float(sigmoid(sharpness * logits(probability) + shift + extra))
                if value > calibrating.FLOOR:
                    found.append((*entity, value))
        gold.append(golden)
        scored.append(found)
    return Candidates.of([21] * sentences, gold, scored)


def fit(candidates, **options):
    return fitting.fit(candidates, decode, fingerprint="f", **options)


def f1_of(candidates, thresholds):
    return fitting._Counts().plus(candidates, np.asarray(thresholds, dtype=float), decode).f1


# probabilities


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.01, 0.99, count)
    return probability, rng.random(count) < probability


def test_calibrated_scores_stay():
    scores, hits = drawn(20_000, 0)
    temperature, bias = fit_scale(scores, hits)
    assert temperature == pytest.approx(1.0, abs=0.05) and bias == pytest.approx(0.0, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.4, 4.0), st.floats(-1.5, 1.5), st.integers(0, 10**6))
def test_overconfident_scores_are_mended(temperature, bias, seed):
    """Scores that were spoilt by a temperature and a bias come back; the calibration error falls."""
    truth, hits = drawn(4000, seed)
    spoilt = sigmoid((logits(truth) - bias) * temperature)
    found = fit_scale(spoilt, hits)
    assert found[0] == pytest.approx(temperature, rel=0.2) and found[1] == pytest.approx(bias, abs=0.3)
    mended = scaled(spoilt, *found)
    assert np.abs(mended - truth).mean() < 0.03
    before, after = Reliability.of(spoilt, hits).error, Reliability.of(mended, hits).error
    assert after < 0.04 and after < before + 0.01


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_any_candidates_give_finite_parameters_at_the_minimum(rows):
    """Without candidates, of one class, perfectly separated, wrongly ordered, with scores 0 and 1."""
    scores, hits = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=bool)
    temperature, bias = fit_scale(scores, hits)
    assert 0.05 - 1e-12 <= temperature <= 20 + 1e-12 and math.isfinite(bias)

    def loss(slope, bias):
        z = slope * logits(scores) + bias
        prior = fitting._PRIOR[0] * (slope - 1) ** 2 + fitting._PRIOR[1] * bias**2
        return (np.logaddexp(0, z) - hits * z).sum() + prior / 2

    least = loss(1 / temperature, bias)
    for slope in np.clip([1 / temperature - 0.01, 1 / temperature, 1 / temperature + 0.01], 0.05, 20):
        for moved in (bias - 0.01, bias, bias + 0.01):
            assert loss(slope, moved) >= least - 1e-9
    assert fit_scale([], []) == (1.0, 0.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.1, 10), st.floats(-5, 5))
def test_probabilities_keep_the_order(scores, temperature, bias):
    made = replace(example(), temperature=temperature, bias=bias)
    ordered = made.probability(sorted(scores))
    assert ((ordered >= 0) & (ordered <= 1)).all() and (np.diff(ordered) >= 0).all()
    assert made.probability(np.array([[0.5, math.nan]])).shape == (1, 2)
    assert np.isnan(made.probability([math.nan])).all()


def test_expected_calibration_error():
    scores = np.array([0.01, 0.02, 0.95, 0.96, 1.0])
    hits = np.array([False, False, True, True, False])
    diagram = Reliability.of(scores, hits)
    assert diagram.count.tolist() == [2, 3]
    np.testing.assert_allclose(diagram.probability, [0.015, 0.97])
    np.testing.assert_allclose(diagram.share, [0.0, 2 / 3])
    assert diagram.error == pytest.approx((2 * 0.015 + 3 * (0.97 - 2 / 3)) / 5)
    assert Reliability.of([], []).error == 0.0


# thresholds


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.7, 1 - 1e-8, 1.0]), st.booleans()), max_size=12),
    st.integers(0, 5),
    st.sampled_from([0.2, 0.5]),
    st.integers(0, 3),
)
def test_the_best_threshold_is_the_best_of_all(rows, missed, prior, rest):
    scores, hits = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=bool)
    gold = int(hits.sum()) + missed + rest

    def value(threshold):
        above = scores > threshold
        return fitting.f1(hits[above].sum() + rest, above.sum() + rest, gold)

    best = best_threshold(scores, hits, gold, prior, (rest, rest))
    options = [prior, *np.nextafter(scores, 0)]
    assert value(best) >= max(value(option) for option in options) - 1e-12
    assert best == prior or value(best) > value(prior)
    thresholds, values = fitting.f1_curve(scores, hits, gold, (rest, rest))
    for threshold, shown in zip(thresholds, values, strict=True):
        assert shown == pytest.approx(value(threshold))


def test_one_decoding_serves_all_thresholds():
    """What a search finds above a threshold is what it finds above the floor, above that threshold."""
    candidates = synthetic(60, 1, sharpness=2.0)
    everything = fitting.decoded(candidates, decode)
    for threshold in np.linspace(0.01, 0.99, 23):
        above = everything.kept(everything.score > threshold)
        found = fitting.found(candidates, np.full(6, threshold), decode)
        columns = ("sentence", "start", "end", "label", "score")
        assert all((getattr(above, name) == getattr(found, name)).all() for name in columns)


@pytest.mark.parametrize("seed", range(4))
def test_a_labels_threshold_is_the_best_while_the_others_stay(seed):
    """By brute force: decode with every threshold of one label, the others at the common one."""
    candidates = synthetic(25, seed, sharpness=2.0, labels=3, spread=1.5)
    common = 0.4
    fitted = fitting.label_thresholds(candidates, common, decode)
    for label in range(3):
        hits = []
        for option in [common, *candidates.score[candidates.label == label] - 1e-9]:
            thresholds = np.full(3, common)
            thresholds[label] = option
            entities = fitting.found(candidates, thresholds, decode)
            own, above = entities.label == label, fitting.found(candidates, np.full(3, common), decode)
            correct = entities.is_gold[own].sum() + above.is_gold[above.label != label].sum()
            hits.append(fitting.f1(correct, own.sum() + (above.label != label).sum(), len(candidates.gold_label)))
        thresholds = np.full(3, common)
        thresholds[label] = fitted[label]
        entities = fitting.found(candidates, thresholds, decode)
        own = entities.label == label
        reached = fitting.f1(
            entities.is_gold[own].sum() + above.is_gold[above.label != label].sum(),
            own.sum() + (above.label != label).sum(),
            len(candidates.gold_label),
        )
        assert reached == pytest.approx(max(hits))


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 500)), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_shrinking(rows, common):
    thresholds, gold = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assert (shrunk(thresholds, common, gold, COMMON) == common).all()
    less, more = shrunk(thresholds, common, gold, 10.0), shrunk(thresholds, common, gold, 100.0)
    for own, near, far, count in zip(thresholds, less, more, gold, strict=True):
        assert min(own, common) - 1e-9 <= near <= max(own, common) + 1e-9
        assert abs(far - common) <= abs(near - common) + 1e-9
        assert count or near == common


def test_fifty_sentences_do_not_overfit():
    """Fresh data: thresholds by label cost next to nothing where labels do not differ, and gain where they do."""
    for spread, least in ((0.0, -0.003), (2.0, 0.01)):
        gains, common_gains = [], []
        for seed in range(12):
            found = fit(synthetic(50, seed, sharpness=2.0, spread=spread)).calibration
            fresh = synthetic(250, 1000 + seed, sharpness=2.0, spread=spread)
            common = f1_of(fresh, np.full(6, found.threshold))
            gains.append(f1_of(fresh, [found.threshold_of(label) for label in fresh.labels]) - common)
            common_gains.append(common - f1_of(fresh, np.full(6, 0.5)))
        assert np.mean(gains) > least
        assert np.mean(common_gains) > 0


def test_the_whole_fit():
    candidates = synthetic(120, 0, sharpness=2.5, shift=-1.0, spread=1.0)
    found = fit(candidates)
    measured = found.calibration.measured
    assert measured.sentences == 120 and measured.gold == len(candidates.gold_label)
    assert measured.candidates == len(candidates.score) == found.before.count.sum() == found.after.count.sum()
    assert measured.ece_after < measured.ece_before / 2
    assert measured.f1_before < measured.f1_common < 1
    assert found.calibration.temperature > 1.5
    assert set(found.calibration.thresholds) == set(candidates.labels)
    assert found.calibration.threshold_of("never seen") == found.calibration.threshold
    thresholds, values = found.curve
    assert (np.diff(thresholds) < 0).all() and values.max() >= f1_of(candidates, np.full(6, 0.5))
    again = fit(synthetic(120, 0, sharpness=2.5, shift=-1.0, spread=1.0))
    assert again.calibration == found.calibration and again.calibration.to_json() == found.calibration.to_json()
    other = fit(candidates, seed=1).calibration  # only the parts of the cross-validation differ
    assert (other.temperature, other.bias, other.threshold) == (
        found.calibration.temperature, found.calibration.bias, found.calibration.threshold,
    )  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_sentences_changes_the_folds_only(random):
    candidates = synthetic(40, 3, sharpness=2.0, spread=1.0)
    order = list(range(40))
    random.shuffle(order)
    place = np.argsort(order)
    moved = replace(candidates, sentence=place[candidates.sentence], gold_sentence=place[candidates.gold_sentence])
    assert fit_scale(moved.score, moved.is_gold) == fit_scale(candidates.score, candidates.is_gold)
    common = fitting.fit_threshold(candidates, decode)
    assert fitting.fit_threshold(moved, decode) == common
    expected = fitting.label_thresholds(candidates, common, decode)
    np.testing.assert_array_equal(fitting.label_thresholds(moved, common, decode), expected)


@pytest.mark.parametrize("sentences", [4, 5, 7])
def test_few_sentences(sentences):
    found = fit(synthetic(sentences, 5, sharpness=2.0)).calibration
    assert 0 <= found.threshold <= 1 and math.isfinite(found.bias)


def test_a_label_without_gold_has_no_threshold_of_its_own():
    candidates = synthetic(30, 0)
    silent = candidates.labels.index("label 2")
    kept = candidates.gold_label != silent
    without = replace(
        candidates, gold_label=candidates.gold_label[kept], gold_sentence=candidates.gold_sentence[kept],
        is_gold=candidates.is_gold & (candidates.label != silent),
    )  # fmt: skip
    found = fit(without).calibration
    assert "label 2" not in found.thresholds and found.threshold_of("label 2") == found.threshold


# what is refused


def columns(gold, scored):
    return Candidates.of([9] * len(gold), gold, scored)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (lambda: columns([], []), "at least 4 sentences to calibrate on, got 0"),
        (lambda: columns([[(0, 0, "a")]] * 3, [[(0, 0, "a", 0.5)]] * 3), "at least 4 sentences .* got 3"),
        (lambda: columns([[]] * 5, [[(0, 0, "a", 0.5)]] * 5), "gold entities to calibrate on, got none in 5"),
        (lambda: columns([[(0, 0, "a")]] * 5, [[]] * 5), "candidates that are gold, got 0 candidates and 5 gold"),
        (lambda: columns([[(0, 0, "a")]] * 5, [[(1, 1, "a", 0.5)]] * 5), "candidates that are gold, got 5 candid"),
        (lambda: columns([[(0, 0, "a")]] * 5, [[(0, 0, "a", 0.5)]] * 5), "candidates that are not gold, got 5 that"),
        (lambda: columns([[(0, 0, "a")]], [[(0, 0, "a", math.nan)]]), "scores: expected numbers, got NaN for 1 of 1"),
        (lambda: columns([[(0, 0, "a")]], [[(0, 0, "a", 4.5)]]), "scores: expected probabilities .* got 4.5 to 4.5"),
    ],
)
def test_candidates_that_nothing_can_be_fitted_to(candidates, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(candidates())
    assert "\n" not in str(caught.value)


# the file


def example():
    measured = Measured(50, 120, 400, 100, 0.1, 0.02, 0.5, 0.55, 0.56)
    thresholds = {"b": 0.1 + 0.2, "a\u00e9[/b]": 1 / 3}
    return Calibration(1.2345678901234567, -0.1, 0.4, thresholds, "f00", measured)


@given(
    st.floats(min_value=1e-3, max_value=1e3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0, 1),
    st.dictionaries(st.text(min_size=1).filter(lambda text: text.isprintable()), st.floats(0, 1), max_size=4),
)
def test_json_keeps_every_bit(temperature, bias, threshold, thresholds):
    made = replace(example(), temperature=temperature, bias=bias, threshold=threshold, thresholds=thresholds)
    read = Calibration.from_json(made.to_json(), "x")
    assert read == made and read.to_json() == made.to_json()


def test_the_order_of_labels_does_not_change_the_file():
    made = example()
    assert replace(made, thresholds=dict(reversed(made.thresholds.items()))).to_json() == made.to_json()
    assert "fifty" not in str(made) and "50 sentences" in str(made)


NAMES = ["temperature", "bias", "threshold", "thresholds", "fingerprint", "measured"]
INNER = [f"measured.{name}" for name in Measured.__annotations__]


def changed(field, value, *, delete=False):
    content = json.loads(example().to_json())
    *outer, last = field.split(".")
    place = content[outer[0]] if outer else content
    if delete:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize("field", ["format", *NAMES, *INNER])
@pytest.mark.parametrize("value", ["missing", None, True, [], float("nan"), float("inf"), -3.5])
def test_damaged_fields(field, value):
    text = changed(field, value, delete=value == "missing")
    if field == "bias" and value == -3.5:
        assert Calibration.from_json(text, "c.json").bias == -3.5
        return
    with pytest.raises(ValueError, match=r"^c\.json: ") as caught:
        Calibration.from_json(text, "c.json")
    said = str(caught.value)
    assert "\n" not in said and said.endswith("; calibrate the model again, or delete the file")
    assert field in said or "NaN" in said or "Infinity" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got 0 characters"),
        ("{", "expected JSON, got 1 characters"),
        ("[]", r"expected an object of fields, got \[\]"),
        (example().to_json()[:-40], "expected JSON"),
        ('{"format": "glimodern calibration 2"}', "format: expected 'glimodern calibration 1'"),
        (changed("extra", 1), "extra: expected one of temperature, .*, got another field"),
        (changed("measured.extra", 1), r"measured\.extra: expected one of sentences, .*, got another field"),
        (changed("temperature", 0), "temperature: expected a number > 0, got 0"),
        (changed("temperature", "1"), "temperature: expected a number > 0, got '1'"),
        (changed("threshold", 1.5), "threshold: expected a number >= 0 and <= 1, got 1.5"),
        (changed("thresholds", {"a": 1.5}), r"thresholds\['a'\]: expected a number >= 0 and <= 1, got 1.5"),
        (changed("thresholds", {"a": None}), r"thresholds\['a'\]: expected a number >= 0 and <= 1, got None"),
        (changed("thresholds", {"": 0.5}), "thresholds: expected labels as text, got ''"),
        (changed("fingerprint", ""), "fingerprint: expected text, got an empty string"),
        (changed("measured.sentences", 1.5), r"measured\.sentences: expected a whole number >= 0"),
    ],
)
def test_damaged_files(text, message):
    with pytest.raises(ValueError, match=message):
        Calibration.from_json(text, "c.json")


# the model


NAMED = ["Ada Lovelace", "Charles Babbage", "Alan Turing", "Grace Hopper"]
PLACES = ["London", "Paris", "New York"]


def data_set(count=24, labels=("person", "place")):
    examples = []
    for i in range(count):
        name, place = NAMED[i % 4].split(), PLACES[i % 3].split()
        words = [*name, "lives", "in", *place, "."]
        gold = [(0, len(name) - 1, labels[0]), (len(name) + 2, len(name) + 1 + len(place), labels[1])]
        examples.append(Example(words, gold if i % 5 else gold[:1]))
    return Dataset("people", examples)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A calibrated tiny model, and its checkpoint."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    model = make_tiny_model(dropout=0.0, max_width=6)
    model.calibrate(data_set())
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the checkpoint, to change."""
    import shutil

    return shutil.copytree(saved[1], tmp_path / "model")


def test_candidates_are_what_the_model_finds(tiny_model):
    """Decoding the candidates at a threshold gives the F1 of `predict_words` at it."""
    data = data_set()
    candidates = calibrating.collect(tiny_model, data)
    assert candidates.score.min() > calibrating.FLOOR and candidates.is_gold.any() and not candidates.is_gold.all()
    for threshold in np.quantile(candidates.score, [0.3, 0.6, 0.9]):
        words = [example.words for example in data]
        results = tiny_model.predict_words(words, asked_types(data), threshold=float(threshold))
        predicted = [[entity[:3] for entity in result.entities] for result in results]
        expected = score([example.entities for example in data], predicted).micro
        ours = fitting.found(candidates, np.full(len(candidates.labels), threshold), decode)
        # spans that cross a better one are no candidates, which seldom matters
        assert abs(len(ours.score) - expected.predicted) <= 0.05 * expected.predicted
        assert abs(int(ours.is_gold.sum()) - expected.correct) <= 1


def test_calibrate(tiny_model, saved):
    model, _ = saved
    made = model.calibration
    assert made.measured.sentences == 24 and made.measured.gold == sum(len(e.entities) for e in data_set())
    assert made.measured.ece_after < made.measured.ece_before
    assert set(made.thresholds) == {"person", "place"}
    assert made.fingerprint == model.weights_fingerprint == weights_fingerprint(model.state_dict())
    small = calibrating.calibrate(model, data_set(), batch_tokens=64).calibration  # rounds otherwise, not packed
    assert small.temperature == pytest.approx(made.temperature, rel=1e-3)
    assert small.threshold == pytest.approx(made.threshold, abs=1e-3)
    assert tiny_model.calibration is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (["a text"], TypeError, "dataset: expected a Dataset of glimodern.data, got list; use load_dataset"),
        (Dataset("none", []), ValueError, "dataset none: expected at least 4 sentences"),
        (Dataset("bare", [Example(["a"], [], types=("x",))] * 5), ValueError, "dataset bare: expected gold entities"),
        (
            Dataset("long", [Example(["a"], [(0, 0, "x")], id="f:1", types=("many words " * 99,))]),
            ValueError,
            "dataset long, sentence f:1: .*token",
        ),
    ],
)
def test_data_that_is_refused(tiny_model, data, error, message):
    with pytest.raises(error, match=message):
        tiny_model.calibrate(data)
    assert tiny_model.calibration is None


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), ("a", TypeError), (1.5, TypeError)])
def test_bad_seeds(tiny_model, seed, error):
    with pytest.raises(error, match="^seed: expected a whole number"):
        tiny_model.calibrate(Dataset("rows", [Example("Ada met Charles .".split(), [(0, 0, "person")])] * 4), seed=seed)


def test_broken_weights_are_refused(tmp_path):
    model = make_tiny_model(dropout=0.0)
    with torch.no_grad():
        next(iter(model.head.parameters())).fill_(math.nan)
    with pytest.raises(ValueError, match="expected"):  # no candidates, or NaN scores, by backend
        model.calibrate(data_set())


# saving, loading, sharing


@pytest.mark.parametrize("options", [{"dtype": "fp32"}, {"dtype": "bf16"}, {"trainable": True}], ids=str)
def test_save_and_load(saved, tmp_path, options):
    model, folder = saved
    loaded = GLiModern.from_pretrained(folder, **options)
    assert loaded.calibration == model.calibration
    assert loaded.weights_fingerprint == model.calibration.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.save_pretrained(tmp_path / "again")
    again = GLiModern.from_pretrained(tmp_path / "again", dtype="fp32")
    assert again.calibration == model.calibration
    assert (tmp_path / "again" / CALIBRATION_FILE).read_text() == (folder / CALIBRATION_FILE).read_text()


def test_a_model_in_half_precision_keeps_its_calibration(saved, tmp_path):
    """fp16 rounds otherwise than the fingerprint, but weights of a model for inference change by rounding only."""
    model, folder = saved
    GLiModern.from_pretrained(folder, dtype="fp16").save_pretrained(tmp_path / "half")
    loaded = GLiModern.from_pretrained(tmp_path / "half").calibration
    assert replace(loaded, fingerprint="x") == replace(model.calibration, fingerprint="x")


def test_int8_reads_it(saved):
    from glimodern.layers.packed_linear import can_pack

    if not can_pack():
        pytest.skip("int8 needs the C++ extension on a CPU with AVX2")
    loaded = quietly_int8(saved[1])
    assert loaded.calibration == saved[0].calibration
    assert loaded.calibrate(data_set()).fingerprint == saved[0].calibration.fingerprint


def test_a_model_without_one_removes_the_older_file(folder, tiny_model):
    assert (folder / CALIBRATION_FILE).is_file()
    (folder / "notes.json").write_text("{}")
    tiny_model.save_pretrained(folder)
    assert not (folder / CALIBRATION_FILE).exists() and (folder / "notes.json").exists()
    assert GLiModern.from_pretrained(folder, dtype="fp32").calibration is None


def test_a_calibration_of_another_model_is_refused(saved, tmp_path):
    other = make_tiny_model(dropout=0.0, max_width=6)
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.mul_(1.01)
    other.save_pretrained(tmp_path / "other")
    write_calibration(tmp_path / "other", saved[0].calibration)
    with pytest.raises(ValueError, match=r"calibration\.json: fingerprint: expected .*delete the file") as caught:
        GLiModern.from_pretrained(tmp_path / "other")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_refused(folder, content):
    (folder / CALIBRATION_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"calibration\.json: expected .*delete the file"):
        GLiModern.from_pretrained(folder)


def test_a_folder_with_a_foreign_file_of_this_name_is_refused(tmp_path, tiny_model):
    (tmp_path / CALIBRATION_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"got files of another model \(calibration\.json\)"):
        tiny_model.save_pretrained(tmp_path)


def test_writing_after_a_crash(folder):
    """A crash while a checkpoint was replaced leaves its files in a commit folder, which is then the current one."""
    made = GLiModern.from_pretrained(folder, dtype="fp32").calibration
    (folder / CALIBRATION_FILE).unlink()
    committed = folder / ".glimodern-new"
    committed.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(committed / file.name)
    assert write_calibration(folder, made) == folder / CALIBRATION_FILE
    assert GLiModern.from_pretrained(folder, dtype="fp32").calibration == made


def test_changed_weights_lose_it(folder, tmp_path, caplog):
    model = GLiModern.from_pretrained(folder, trainable=True)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(1e-3)
    model.save_pretrained(tmp_path / "trained")
    assert "the calibration is not saved, because it was made on other weights" in caplog.text
    assert not (tmp_path / "trained" / CALIBRATION_FILE).exists()
    assert GLiModern.from_pretrained(tmp_path / "trained").calibration is None


def test_training_from_a_calibrated_checkpoint(folder):
    from glimodern.train.config import parse_train_config
    from glimodern.train.setup import build_model

    given = ["--train-data", "x", "--init-from", str(folder), "--output-dir", "y"]
    model = build_model(parse_train_config(given).model, data_set(), 5, 0)
    assert model.calibration is None


def test_the_fingerprint_of_a_bi_encoder(tmp_path, tiny_model):
    """Two encoders and their projections count; the dtype does not."""
    from safetensors.torch import save_file

    encoder = tmp_path / "encoder"
    tiny_model.encoder.config.save_pretrained(encoder)
    tiny_model.tokenizer.save_pretrained(encoder)
    state = {name: tensor.contiguous() for name, tensor in tiny_model.encoder.model.state_dict().items()}
    save_file(state, encoder / "model.safetensors", metadata={"format": "pt"})
    model = GLiModern.from_encoder(encoder, labels_encoder=encoder, max_width=4).eval()
    before = model.weights_fingerprint
    made = model.calibrate(data_set())
    assert made.fingerprint == before
    model.save_pretrained(tmp_path / "model")
    for dtype in ("fp32", "bf16"):
        assert GLiModern.from_pretrained(tmp_path / "model", dtype=dtype).calibration == made
    with torch.no_grad():
        next(iter(model.label_encoder.parameters())).add_(0.01)
    assert model.weights_fingerprint != before


def test_push_and_pull(saved, tiny_model, tmp_path):
    model, _ = saved
    with in_place_of_the_hub(tmp_path / "cache") as hub:
        model.push_to_hub("me/calibrated")
        assert CALIBRATION_FILE in hub.repositories["me/calibrated"]["main"]
        assert GLiModern.from_pretrained("me/calibrated", dtype="fp32").calibration == model.calibration
        tiny_model.push_to_hub("me/calibrated")
        assert CALIBRATION_FILE not in hub.repositories["me/calibrated"]["main"]


def test_gliner_ignores_it(saved):
    gliner = pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    assert (saved[1] / CALIBRATION_FILE).is_file()
    loaded = gliner.GLiNER.from_pretrained(str(saved[1]))
    assert loaded.predict_entities("Ada Lovelace lives in London .", ["person"], threshold=0.01)


def test_spacy_copies_it(saved, tmp_path):
    spacy = pytest.importorskip("spacy", reason="needs the extra spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("glimodern", config={"model": str(saved[1]), "labels": ["person"]})
    pipeline.to_disk(tmp_path / "pipeline")
    assert (tmp_path / "pipeline" / "glimodern" / CALIBRATION_FILE).is_file()


# the command


@pytest.fixture
def rows(tmp_path):
    lines = [{"tokenized_text": e.words, "ner": [list(entity) for entity in e.entities]} for e in data_set()]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def test_the_command(folder, rows, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    (folder / CALIBRATION_FILE).unlink()
    plots = tmp_path / "new" / "plots"
    calibrate.main([str(folder), "--data", str(rows), "--plots", str(plots), "--dtype", "fp32"])
    said = capsys.readouterr().out
    made = GLiModern.from_pretrained(folder, dtype="fp32").calibration
    expected = GLiModern.from_pretrained(folder, dtype="fp32").calibrate(load_dataset(rows))
    assert made == expected
    for value in (made.measured.f1_before, made.measured.f1_common, made.measured.f1_labels, made.measured.ece_after):
        assert f"{100 * value:.1f}" in said
    assert f"written to {folder / CALIBRATION_FILE}" in said.replace("\n", "")
    for name in ("reliability.png", "f1.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*partial*"))


def test_an_output_of_its_own(folder, rows, tmp_path):
    before = (folder / CALIBRATION_FILE).read_bytes()
    calibrate.main([str(folder), "--data", str(rows), str(rows), "--output", str(tmp_path / "out"), "--seed", "3"])
    assert (folder / CALIBRATION_FILE).read_bytes() == before
    (file,) = (tmp_path / "out").iterdir()
    assert Calibration.from_json(file.read_text(), "x").measured.sentences == 48


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["me/model", "--data", "{rows}"], "--output: expected a folder for calibration.json, because me/model is not"),
        (["{model}", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["{model}", "--data", "{rows}", "--data", "{rows}"], "--data: expected one flag with all its values"),
        (["{model}", "--data", "{rows}", "--plots", "{rows}"], "--plots: expected a folder"),
        (["{model}", "--data", "{rows}", "--output", "{rows}"], "--output: expected a folder"),
    ],
)
def test_the_command_checks_before_it_computes(folder, rows, monkeypatch, more, message):
    monkeypatch.setattr(GLiModern, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        calibrate.main([part.format(model=folder, rows=rows) for part in more])


def test_plots_need_matplotlib(folder, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"--plots: expected matplotlib .*glimodern\[plots\]"):
        calibrate.main([str(folder), "--data", str(rows), "--plots", str(tmp_path / "plots")])
    calibrate.main([str(folder), "--data", str(rows)])


# prediction with calibrated thresholds


@pytest.mark.parametrize(
    "options",
    [{}, {"labels_per_prompt": 1}, {"window": "sentence"}, {"flat": False, "multi_label": True}, {"top_k": 1}],
)
def test_calibrated_prediction(tiny_model, options):
    """Thresholds of the labels act on the model's scores; the scores returned are calibrated."""
    text, labels = " ".join(WORDS * 12), ["person", "place", "machine"]
    scores = sorted(
        e["score"] for e in tiny_model.predict(text, labels, threshold=0.0, flat=False, multi_label=True)[0]
    )
    low, high = scores[len(scores) // 4], scores[len(scores) // 2]
    calibration = replace(example(), threshold=low, thresholds={"place": high})
    by_label = {"place": high, "*": low}
    (wanted,) = tiny_model.predict(text, labels, threshold=by_label, scores="all", **options)
    assert wanted
    tiny_model.calibration = calibration
    try:
        (found,) = tiny_model.predict(text, labels, threshold="calibrated", scores="all", **options)
        (words,) = tiny_model.predict_words([WORDS], labels, threshold="calibrated")
        with pytest.raises(TypeError, match="threshold: expected a probability.* got the string 'calibrate'"):
            tiny_model.predict(text, labels, threshold="calibrate")
    finally:
        tiny_model.calibration = None
    plain_words = tiny_model.predict_words([WORDS], labels, threshold=by_label)[0].entities
    assert [entity[:3] for entity in words.entities] == [entity[:3] for entity in plain_words]
    for one, other in zip(found, wanted, strict=True):
        assert [one[key] for key in ("start", "end", "label")] == [other[key] for key in ("start", "end", "label")]
        assert one["score"] == pytest.approx(float(calibration.probability(np.array([other["score"]]))[0]))
        assert list(one["scores"].values()) == pytest.approx(
            calibration.probability(np.array(list(other["scores"].values()))).tolist()
        )
    with pytest.raises(ValueError, match='expected a calibrated model for "calibrated", got one without a calibration'):
        tiny_model.predict(text, labels, threshold="calibrated")
