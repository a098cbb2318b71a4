"""The Presidio recognizer: in its engines, with Presidio's names and thresholds, loaded late, and saved as a dict."""

import json

import pytest

from glimodern.model.glimodern import GLiModern
from tests.conftest import clear_threshold
from tests.finder import Finder

presidio = pytest.importorskip("presidio_analyzer", reason="needs the extra presidio")
spacy = pytest.importorskip("spacy", reason="needs the extra presidio, which has spaCy")

from presidio_analyzer.nlp_engine import SpacyNlpEngine  # noqa: E402
from presidio_analyzer.recognizer_registry import RecognizerRegistry  # noqa: E402

from glimodern.integrations.presidio import GLiModernRecognizer  # noqa: E402

LABELS = {"PERSON": "person", "LOCATION": ["place", "city"]}
TEXT = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine ."
TEXTS = [TEXT, "", "Taylor wrote about London in 1843 .", "😀 Ada met Charles ."]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presidio") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return GLiModern.from_pretrained(folder)


@pytest.fixture(scope="module")
def threshold(model):
    return clear_threshold(model, TEXTS, ["person", "place", "city"])


def recognizer_of(finder, labels=LABELS, **options):
    recognizer = GLiModernRecognizer("nowhere", labels, **options)
    recognizer._model._model = finder
    return recognizer


class BlankEngine(SpacyNlpEngine):
    """An NLP engine without a trained pipeline."""

    def __init__(self):
        super().__init__()
        self.nlp = {"en": spacy.blank("en")}


def engine_with(*recognizers):
    registry = RecognizerRegistry(recognizers=list(recognizers), supported_languages=["en"])
    return presidio.AnalyzerEngine(registry=registry, nlp_engine=BlankEngine(), supported_languages=["en"])


def rows(results):
    return [(result.entity_type, result.start, result.end, result.score) for result in results]


def test_in_the_engine(folder, model, threshold):
    recognizer = GLiModernRecognizer(str(folder), LABELS, threshold)
    analyzer = engine_with(recognizer)
    assert not recognizer._model.loaded
    names = {"person": "PERSON", "place": "LOCATION", "city": "LOCATION"}
    asked = model.predict(TEXTS, list(names), threshold)
    for text, entities in zip(TEXTS, asked, strict=True):
        found = analyzer.analyze(text, language="en")
        wanted = {(names[one["label"]], one["start"], one["end"], one["score"]) for one in entities}
        assert set(rows(found)) == wanted
    assert any(asked) and recognizer._model.loaded


def test_beside_other_recognizers():
    numbers = presidio.PatternRecognizer(
        supported_entity="YEAR", patterns=[presidio.Pattern("year", r"\b\d{4}\b", 0.6)]
    )
    finder = Finder(("Taylor", "person", 0.9), ("London", "place", 0.8))
    analyzer = engine_with(recognizer_of(finder), numbers)
    text = TEXTS[2]
    found = analyzer.analyze(text, language="en", return_decision_process=True)
    assert {text[one.start : one.end]: one.entity_type for one in found} == {
        "Taylor": "PERSON",
        "London": "LOCATION",
        "1843": "YEAR",
    }
    (ours,) = [one for one in found if one.entity_type == "PERSON"]
    assert ours.analysis_explanation.original_score == 0.9
    assert "'person'" in ours.analysis_explanation.textual_explanation
    assert ours.recognition_metadata["recognizer_name"] == "GLiModernRecognizer"
    # the engine asks for one entity only
    assert rows(analyzer.analyze(text, language="en", entities=["LOCATION"])) == [("LOCATION", 19, 25, 0.8)]
    assert finder.calls[-1][1] == ["place", "city"]
    calls = len(finder.calls)
    assert [one.entity_type for one in analyzer.analyze(text, language="en", entities=["YEAR"])] == ["YEAR"]
    assert len(finder.calls) == calls


def test_nothing_is_loaded_for_other_entities():
    recognizer = GLiModernRecognizer("nowhere", LABELS)
    assert recognizer.analyze(TEXT, ["IBAN"]) == []
    assert recognizer.supported_entities == ["PERSON", "LOCATION"]
    with pytest.raises(FileNotFoundError):
        recognizer.load()


def test_thresholds_by_entity():
    finder = Finder()
    recognizer = recognizer_of(finder, threshold={"LOCATION": 0.7, "*": 0.4})
    recognizer.analyze(TEXT, None)
    recognizer.analyze(TEXT, ["PERSON"])
    assert [call[2] for call in finder.calls] == [{"place": 0.7, "city": 0.7, "*": 0.4}, {"*": 0.4}]


def test_batches():
    finder = Finder(("Ada", "person", 0.9), ("London", "city", 0.8))
    recognizer = recognizer_of(finder)
    assert [rows(results) for results in recognizer.analyze_batch(TEXTS)] == [
        [("PERSON", 0, 3, 0.9), ("LOCATION", 36, 42, 0.8)],
        [],
        [("LOCATION", 19, 25, 0.8)],
        [("PERSON", 2, 5, 0.9)],
    ]
    assert [len(call[0]) for call in finder.calls] == [4]
    assert recognizer.analyze_batch([]) == []
    assert recognizer.analyze_batch(TEXTS, ["IBAN"]) == [[]] * 4


def test_batch_analyzer_engine_reads_ahead():
    finder = Finder(("Ada", "person", 0.9), ("London", "city", 0.8))
    recognizer = recognizer_of(finder)
    batch = presidio.BatchAnalyzerEngine(engine_with(recognizer))
    wanted = [rows(results) for results in batch.analyze_iterator(TEXTS, language="en")]
    assert len(finder.calls) == 4 and wanted[0]
    with recognizer.read_ahead([*TEXTS, TEXT]):
        assert [len(call[0]) for call in finder.calls[4:]] == [4]
        assert [rows(results) for results in batch.analyze_iterator(TEXTS, language="en")] == wanted
        assert len(finder.calls) == 5
        batch.analyze_iterator(TEXTS[:1], language="en", entities=["PERSON"])  # another question
        assert len(finder.calls) == 6
    batch.analyze_iterator(TEXTS[:1], language="en")
    assert len(finder.calls) == 7


def test_saved_as_a_dict(folder, threshold):
    recognizer = GLiModernRecognizer(
        str(folder),
        LABELS,
        {"PERSON": threshold, "*": 0.9},
        flat=False,
        reading={"window": 20, "context": 2},
        supported_entities=["PERSON"],
        supported_language="de",
        context=["Dr."],
        dtype="fp32",
    )
    stored = json.loads(json.dumps(recognizer.to_dict()))
    again = GLiModernRecognizer.from_dict(stored)
    assert again.to_dict() == recognizer.to_dict() == stored
    assert again.context == ["Dr."] and again.supported_language == "de"
    assert rows(again.analyze(TEXT, None)) == rows(recognizer.analyze(TEXT, None)) != []
    assert {result.entity_type for result in again.analyze(TEXT, None)} == {"PERSON"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {}}, "labels: expected at least one"),
        ({"labels": ["person"]}, "labels: expected a mapping of Presidio entity -> label"),
        ({"labels": {"PERSON": []}}, r"labels\['PERSON'\]: expected a label or a list"),
        ({"labels": {"PERSON": " "}}, r"labels\[0\]: expected a name"),
        ({"labels": {"A": "x", "B": "x"}}, "labels: expected each label for one entity, got 'x' for 'A' and 'B'"),
        ({"threshold": {"person": 0.4, "*": 0.5}}, r"threshold: .* got \['person'\]"),
        ({"threshold": {"PERSON": 0.4}}, r"got none for \['LOCATION'\]"),
        ({"threshold": 2}, "threshold: expected a probability"),
        ({"supported_entities": ["IBAN"]}, r"supported_entities: .* got \['IBAN'\]"),
        ({"reading": {"windows": 3}}, r"reading: expected options among long_texts, .* got \['windows'\]"),
        ({"reading": 3}, "reading: expected a mapping"),
        ({"reading": {"window": 0}}, "window: expected a whole number >= 1"),
        ({"flat": "yes"}, "flat: "),
        ({"model": ""}, "model: expected a path"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GLiModernRecognizer(**{"model": "nowhere", "labels": LABELS, **options})
