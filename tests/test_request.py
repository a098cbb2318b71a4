"""What texts, labels and options may be: every kind of container, one error message for what is refused."""

import array
import collections
import enum
import itertools
import pathlib

import numpy as np
import pytest
import torch

from glimodern.inference.checks import check_count, check_flag, check_threshold
from glimodern.inference.label_sets import read_labels
from glimodern.inference.request import ReadOptions, Search, read_requests, read_word_requests
from glimodern.inputs.labels import LabelSet
from glimodern.inputs.words import split_words
from tests.conftest import WORDS

TEXTS = ["Ada met Charles .", "", "Taylor wrote about London"]
SETS = [("person", "place"), ("place",), ("machine", "person")]
TEXT = " ".join(WORDS)


class Scalar:
    """As pyarrow's."""

    def __init__(self, value):
        self.value = value

    def as_py(self):
        return self.value


class Column:
    """As of pyarrow and datasets: a length, items by index, nothing else."""

    def __init__(self, values, wrap=Scalar):
        self.values, self.wrap = list(values), wrap

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.wrap(self.values[i])


class Unsized:
    """As tqdm of a generator: its length raises."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        raise TypeError("no length")

    def __iter__(self):
        return iter(self.values)


class UnsizedToo(Unsized):
    """As tqdm's own __len__."""

    def __len__(self):
        raise NotImplementedError


class Name(str, enum.Enum):
    PERSON = "person"
    PLACE = "place"


def series(values):
    return pytest.importorskip("pandas").Series(list(values), index=range(7, 7 + len(list(values))))


SIZED = {
    "list": list, "tuple": tuple, "deque": collections.deque, "dict keys": lambda v: dict.fromkeys(v).keys(),
    "dict values": lambda v: dict(enumerate(v)).values(), "array": np.array,
    "object array": lambda v: np.array(v, object), "numpy strings": lambda v: [np.str_(x) for x in v], "series": series,
    "column": Column,
}  # fmt: skip
STREAMS = {
    "iterator": iter, "generator": lambda v: (x for x in v), "map": lambda v: map(str, v), "unsized": Unsized,
    "chain": lambda v: itertools.chain(v), "unsized too": UnsizedToo,
}  # fmt: skip


def read(texts, labels):
    stream, total = read_requests(texts, labels, split_words)
    requests = list(stream)
    assert all(type(r.text) is str and [w.text for w in r.offsets] == list(r.words) for r in requests)
    assert all(type(name) is str for r in requests for name in (*r.labels.names, *r.labels.prompts))
    return [request.text for request in requests], [request.labels.names for request in requests], total


@pytest.mark.parametrize("kind", [*SIZED, *STREAMS])
def test_kinds_of_texts(kind):
    texts = {**SIZED, **STREAMS}[kind](TEXTS)
    assert read(texts, ["person"]) == (TEXTS, [("person",)] * 3, 3 if kind in SIZED else None)


@pytest.mark.parametrize("kind", [*SIZED, *STREAMS])
def test_kinds_of_labels(kind):
    make = {**SIZED, **STREAMS}[kind]
    assert read(TEXTS, make(["place", "person"]))[1] == [("place", "person")] * 3
    assert read_labels(make(["place", "person"])).names == ("place", "person")
    per_text = [make(list(asked)) for asked in SETS]
    assert read(TEXTS, per_text)[1] == SETS
    assert read(iter(TEXTS), iter(per_text if kind in SIZED else [make(list(asked)) for asked in SETS]))[1] == SETS


def test_other_labels():
    assert read_labels({"b", "a"}).names == read_labels(frozenset({"b", "a"})).names == ("a", "b")
    assert read_labels(set("hgfedcba")).names == tuple("abcdefgh")
    assert read(TEXTS, set("hgfedcba"))[1] == [tuple("abcdefgh")] * 3
    assert read_labels(["a", "b", "a"]).names == ("a", "b")
    assert read_labels(Name).names == ("person", "place")
    described = {"PER": "a person", "LOC": "a place"}
    assert read_labels(described) == LabelSet(("PER", "LOC"), ("a person", "a place"))
    (one, two), _ = read_requests(TEXTS[:2], [described, ["x"]], split_words)
    assert (one.labels.prompts, two.labels.prompts) == (("a person", "a place"), ("x",))
    assert read(TEXTS, [])[1] == [()] * 3
    assert read(TEXTS, [[], ["a"], ()])[1] == [(), ("a",), ()]
    assert read(TEXTS[:2], np.array([["a", "b"], ["c", "d"]]))[1] == [("a", "b"), ("c", "d")]
    assert read(TEXTS[:2], Column([["a"], ["b", "c"]]))[1] == [("a",), ("b", "c")]
    assert read("one text", [["a"]]) == (["one text"], [("a",)], 1)


def frame():
    return pytest.importorskip("pandas").DataFrame({"text": TEXTS})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"bytes", "texts: expected a string or an iterable of strings, got bytes"),
        (bytearray(b"x"), "texts: expected .*, got bytearray"),
        ({"text": "x"}, r"texts: expected .*, got dict; give its values\(\)"),
        ({"a", "b"}, "texts: expected .*, got set, which has no order; give a list"),
        (frozenset("ab"), "texts: expected .*, got frozenset, which has no order; give a list"),
        (None, "texts: expected .*, got NoneType"),
        (3, "texts: expected .*, got int 3"),
        (pathlib.Path("x"), "texts: expected .*, got PosixPath"),
        (frame, "texts: expected .*, got DataFrame; give one column"),
        (lambda: np.array("x"), "texts: expected .*, got ndarray"),
        (lambda: np.array([["x"]]), "texts: expected .*, got ndarray"),
        (["a", None], r"texts\[1\]: expected a string, got NoneType"),
        (["a", float("nan")], r"texts\[1\]: expected a string, got float nan"),
        (["a", b"x"], r"texts\[1\]: expected a string, got bytes; decode it"),
        (["a", bytearray(b"x")], r"texts\[1\]: expected a string, got bytearray; decode it"),
        (memoryview(b"x"), "texts: expected .*, got memoryview"),
        (["a", pathlib.Path("x")], r"texts\[1\]: expected a string, got PosixPath"),
        ([["a", "b"]], r"texts\[0\]: expected a string, got list"),
        (lambda: np.array(["a", 3], object), r"texts\[1\]: expected a string, got int 3"),
        (Column(["a", None]), r"texts\[1\]: expected a string, got NoneType"),
        (array.array("i", [1]), r"texts\[0\]: expected a string, got int 1"),
        (lambda: torch.ones(2), r"texts\[0\]: expected a string, got Tensor"),
    ],
)
def test_what_is_no_text(texts, message):
    with pytest.raises(TypeError, match=message):
        read_requests(texts() if callable(texts) else texts, ["person"], split_words)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ("person", TypeError, r"labels: expected .*, got the string 'person'; write \['person'\]"),
        (None, TypeError, "labels: expected an iterable of strings, or a mapping.*, got None"),
        (b"person", TypeError, "labels: expected .*, got bytes"),
        (3, TypeError, "labels: expected .*, got int 3"),
        (pathlib.Path("x"), TypeError, "labels: expected .*, got PosixPath"),
        (frame, TypeError, "labels: expected .*, got DataFrame"),
        (lambda: np.array([[["a"]]]), TypeError, "labels: expected .*, got ndarray"),
        (["a", 3], TypeError, r"labels\[1\]: expected a string, got int 3"),
        ([3, "a"], TypeError, r"labels\[0\]: expected a string, got int 3"),
        ([b"a"], TypeError, r"labels\[0\]: expected a string, got bytes"),
        ([None], TypeError, r"labels\[0\]: expected a string, got NoneType"),
        (["a", ["b"]], TypeError, r"labels\[1\]: expected a string, got list"),
        ({"a", 3}, TypeError, "expected a string, got int 3"),
        (["a", " "], ValueError, r"labels\[1\]: expected a name such as 'person', got an empty string"),
        ({"a": 3}, TypeError, r"labels\['a'\]: expected a string, got int 3"),
        ({"a": ["x", "y"]}, TypeError, r"labels\['a'\]: expected a string, got list"),
        ({3: "a"}, TypeError, "labels: key 0: expected a string, got int 3"),
        ({"a": ""}, ValueError, r"labels\['a'\]: expected a name"),
        ({"a": "x", "b": "x"}, ValueError, r"labels: expected a different description.*'x' for \['a', 'b'\]"),
        ([["a"], "b", ["c"]], TypeError, r"labels\[1\]: expected .*, got the string 'b'"),
        ([["a"], None, ["c"]], TypeError, r"labels\[1\]: expected .*, got NoneType"),
        ([["a"], ["b", 3], ["c"]], TypeError, r"labels\[1\]\[1\]: expected a string, got int 3"),
        ([["a"], {"b": 3}, ["c"]], TypeError, r"labels\[1\]\['b'\]: expected a string"),
        ([["a"]], ValueError, r"labels: expected one label set per text \(3\), got 1"),
        ({("a",), ("b",), ("c",)}, TypeError, "labels: expected label sets in the texts' order, got set"),
        (
            ["a", "\ud800"],
            ValueError,
            r"labels\[1\]: expected Unicode text, got a lone surrogate '\\ud800' at char.* 0",
        ),
        (iter([["a"]]), ValueError, "labels: expected one label set per text, got 1 of them and more texts"),
        (iter([["a"]] * 4), ValueError, r"labels: expected one label set per text \(3\), got more"),
    ],
)
def test_what_is_no_label(labels, error, message):
    with pytest.raises(error, match=message):
        read_requests(TEXTS, labels() if callable(labels) else labels, split_words)


def test_surrogates_are_named():
    with pytest.raises(
        ValueError, match=r"texts\[1\]: expected Unicode text, got a lone surrogate '\\ud83d' at char.* 2"
    ):
        read_requests(["fine \U0001f600", "a \ud83d b"], ["person"], split_words)
    with pytest.raises(ValueError, match=r"texts\[1\]\[3\]: expected Unicode text"):
        read_word_requests([["é"], ["a", "b", "c", "\udfff"]], ["person"])


def test_words():
    stream, total = read_word_requests([("Ada", "met"), iter(["x"]), np.array(["y", "é"]), []], ["a"])
    assert [list(request.words) for request in stream] == [["Ada", "met"], ["x"], ["y", "é"], []]
    assert total == 4
    stream, total = read_word_requests(Column([["Ada", "met"], ["x"]]), ["a"])
    assert [list(request.words) for request in stream] == [["Ada", "met"], ["x"]] and total == 2
    assert read_word_requests(iter([["a"]]), ["a"]).total is None
    for texts, message in (
        ("Ada met", "texts: expected an iterable of texts, each a list of words, got str 'Ada met'"),
        (["Ada met"], r"texts\[0\]: expected a list of words, got str 'Ada met'; predict takes texts as strings"),
        ([["Ada", 3]], r"texts\[0\]\[1\]: expected a string, got int 3"),
        ([["Ada"], None], r"texts\[1\]: expected a list of words, got NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            read_word_requests(texts, ["person"])


# options


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.float64(0.25)])
def test_thresholds(value):
    assert check_threshold(value) == float(value) and type(check_threshold(value)) is float
    for scalar in (np.array(value), torch.tensor(value)):
        assert check_threshold(scalar) == float(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("0.5", TypeError), (None, TypeError), (True, TypeError), (np.bool_(True), TypeError), (0.5 + 0j, TypeError),
        ([0.5], TypeError), (b"1", TypeError),
        (float("nan"), ValueError), (-0.1, ValueError), (1.1, ValueError), (float("inf"), ValueError),
        (np.float32("nan"), ValueError),
    ],
)  # fmt: skip
def test_what_is_no_threshold(value, error):
    with pytest.raises(error, match=r"threshold: expected a probability in \[0, 1\], got "):
        check_threshold(value)
    with pytest.raises(TypeError, match="threshold: expected .*, got (Tensor|ndarray)"):
        check_threshold(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="threshold: expected .*, got nan"):
        check_threshold(torch.tensor(float("nan")))


def test_flags():
    assert check_flag("flat", np.bool_(True)) is True
    assert check_flag("flat", torch.tensor(False)) is False
    for value in (1, 0, None, "false", [True], np.array([True])):
        with pytest.raises(TypeError, match="flat: expected True or False, got "):
            check_flag("flat", value)
    with pytest.raises(TypeError, match="multi_label: expected True or False, got str 'no'"):
        Search.checked(True, "no")
    assert Search.checked(np.bool_(False), True, np.int64(3)) == Search(False, True, 3)
    with pytest.raises(TypeError, match="top_k: expected a number of entities, got bool True"):
        Search.checked(True, False, True)
    with pytest.raises(ValueError, match="top_k: expected a number of entities of at least 1, got 0"):
        Search.checked(True, False, 0)


def test_counts():
    for value in (3, np.int64(3), np.array(3), torch.tensor(3)):
        assert check_count("n", value, "a number") == 3 and type(check_count("n", value, "a number")) is int
    for value in (True, np.bool_(True), 2.0, "3", None, [3]):
        with pytest.raises(TypeError, match="n: expected a number, got "):
            check_count("n", value, "a number")
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"n: expected a number of at least 1, got {value}"):
            check_count("n", value, "a number")


@pytest.mark.parametrize(
    ("labels", "where"),
    [
        (["a", "no"], "labels"), ({"no"}, "labels"), ({"x": "no"}, "labels"), (iter(["no"]), "labels"),
        ([["a"], ["no"], ["a"]], r"labels\[1\]"), ([["a"], {"x": "no"}, ["a"]], r"labels\[1\]"),
    ],
)  # fmt: skip
def test_every_label_set_passes_the_models_check(labels, where):
    def check(label_set, name):
        if "no" in label_set.prompts:
            raise ValueError(f"{name}: refused")
        return LabelSet(tuple(f"my {label}" for label in label_set.names), label_set.prompts)

    with pytest.raises(ValueError, match=f"^{where}: refused"):
        read_requests(TEXTS, labels, split_words, ReadOptions(check))
    stream, _ = read_requests(TEXTS, ["a"], split_words, ReadOptions(check))
    assert [request.labels.names for request in stream] == [("my a",)] * 3


def test_each_text_has_its_own_descriptions():
    """Label sets with equal names and different descriptions stay apart."""
    (one, two, three), _ = read_requests(TEXTS, [{"a": "x"}, {"a": "y"}, ["a"]], split_words)
    assert [request.labels.prompts for request in (one, two, three)] == [("x",), ("y",), ("a",)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": "0.5"}, TypeError, "threshold: expected a probability, a mapping .*, got the string '0.5'"),
        ({"flat": "yes"}, TypeError, "flat: expected True or False"),
        ({"multi_label": 1}, TypeError, "multi_label: expected True or False, got int 1"),
        ({"batch_tokens": 2.5}, TypeError, "batch_tokens: expected a number of tokens"),
        ({"progress": "yes"}, TypeError, "progress: expected True or False"),
    ],
)
def test_options_of_predict(tiny_model, options, error, message):
    for texts in ([TEXT], iter([TEXT])):  # of a stream too they are refused at once
        with pytest.raises(error, match=message):
            tiny_model.predict(texts, ["person"], **options)
    if "progress" not in options:
        with pytest.raises(error, match=message):
            tiny_model.predict_words(iter([WORDS]), ["person"], **options)


# in the entry points


def spans(results):
    return [[(e["start"], e["end"], e["label"], pytest.approx(e["score"])) for e in result] for result in results]


@pytest.mark.parametrize("kind", ["array", "series", "column", "generator", "map"])
def test_entry_points_take_the_same(tiny_model, kind):
    make = {**SIZED, **STREAMS}[kind]
    wanted = tiny_model.predict([TEXT, "Ada"], ["person", "place"], 0.3)
    assert sum(map(len, wanted)) > 0
    found = tiny_model.predict(make([TEXT, "Ada"]), make(["person", "place"]), 0.3)
    assert isinstance(found, list) == (kind in SIZED)
    assert spans(wanted) == spans(found)
    for name in ("inference", "batch_predict_entities"):
        found = getattr(tiny_model, name)(make([TEXT, "Ada"]), make(["person", "place"]), threshold=0.3)
        assert isinstance(found, list) and spans(wanted) == spans(found)
    assert spans(wanted[:1]) == spans([tiny_model.predict_entities(TEXT, make(["person", "place"]), threshold=0.3)])
    words = tiny_model.predict_words([WORDS], make(["person", "place"]), threshold=0.3)
    assert [(label, score) for _, _, label, score in words[0].entities] == [
        (e["label"], pytest.approx(e["score"])) for e in wanted[0]
    ]


def test_labels_of_words_are_those_of_predict(tiny_model):
    """["person"] is one label for all texts, not a text's labels p, e, r, s, o, n; a mapping asks its descriptions."""
    for labels in (["person", "place"], {"A": "person", "B": "place"}, [{"A": "person"}]):
        (found,) = tiny_model.predict_words([WORDS], labels, threshold=0.3)
        (wanted,) = tiny_model.predict([TEXT], labels, 0.3)
        assert [(e["label"], e["score"]) for e in wanted] == [(label, score) for *_, label, score in found.entities]
        assert found.entities
    assert isinstance(tiny_model.predict_words([WORDS], ["person"]), list)
    assert not isinstance(tiny_model.predict_words(iter([WORDS]), ["person"]), list)


def test_descriptions_are_asked_and_labels_answered(tiny_model):
    described = {"A": "person", "B": "machine"}
    (wanted,) = tiny_model.predict([TEXT], ["person", "machine"], 0.3)
    renamed = [{**e, "label": {"person": "A", "machine": "B"}[e["label"]]} for e in wanted]
    assert renamed
    for found in (
        tiny_model.predict(TEXT, described, 0.3)[0],
        tiny_model.predict([TEXT], [described], 0.3)[0],
        next(tiny_model.predict(iter([TEXT]), described, 0.3)),
        tiny_model.predict_entities(TEXT, described, threshold=0.3),
    ):
        assert found == renamed
    from glimodern.inspect import inspect

    assert inspect(tiny_model, TEXT, described, threshold=0.3).entities == renamed


def test_one_text_is_named_text(tiny_model):
    with pytest.raises(TypeError, match="text: expected a string, got list"):
        tiny_model.predict_entities([TEXT], ["person"])
    with pytest.raises(TypeError, match="flat_ner: expected True or False, got str"):
        tiny_model.predict_entities(TEXT, ["person"], flat_ner="yes")
    with pytest.raises(TypeError, match="batch_size: expected a number of texts, got str"):
        tiny_model.inference([TEXT], ["person"], batch_size="8")


def test_words_have_an_order():
    for texts, where in (({("Ada", "met")}, "texts"), ([{"Ada", "met"}], r"texts\[0\]")):
        with pytest.raises(TypeError, match=f"{where}: expected .*, got set, which has no order; give a list"):
            read_word_requests(texts, ["person"])


def test_a_series_whose_index_says_columns_is_no_table():
    series = pytest.importorskip("pandas").Series(["one text"], index=["columns"])
    assert read(series, ["a"]) == (["one text"], [("a",)], 1)


def test_a_comparison_needs_a_text(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    model = type(tiny_model).from_pretrained(tmp_path / "model", dtype="fp32")
    with pytest.raises(ValueError, match="texts: expected at least one text to compare by, got none"):
        model.check_precision([], ["person"])


def test_an_option_of_gliners_may_be_an_array(tiny_model):
    with pytest.raises(ValueError, match="packing_config: expected no value, because glimodern lacks this option"):
        tiny_model.inference("Ada", ["person"], packing_config=np.array([1, 2]))
