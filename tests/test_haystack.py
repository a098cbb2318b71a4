"""The Haystack component: in a pipeline, its annotations, one call for all Documents, and its settings as a dict."""

import inspect

import pytest

from glimodern.model.glimodern import GLiModern
from tests.conftest import clear_threshold

haystack = pytest.importorskip("haystack", reason="needs the extra haystack")

from haystack import Document, Pipeline  # noqa: E402

from glimodern.integrations.haystack import GLiModernEntityExtractor, NamedEntityAnnotation  # noqa: E402

LABELS = ["person", "place"]
TEXT = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine ."
TEXTS = [TEXT, "", "😀 Ada met Charles in London ."]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("haystack") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return GLiModern.from_pretrained(folder)


@pytest.fixture(scope="module")
def threshold(model):
    return clear_threshold(model, TEXTS, LABELS)


def annotations(entities):
    return [NamedEntityAnnotation(one["label"], one["start"], one["end"], one["score"]) for one in entities]


def test_in_a_pipeline(folder, model, threshold):
    pipeline = Pipeline()
    pipeline.add_component("entities", GLiModernEntityExtractor(str(folder), LABELS, threshold))
    documents = [Document(content=text, meta={"page": page}) for page, text in enumerate(TEXTS)]
    documents.append(Document(content=None, meta={"page": 3}))
    answer = pipeline.run({"entities": {"documents": documents}})["entities"]["documents"]
    wanted = [*map(annotations, model.predict(TEXTS, LABELS, threshold)), []]
    assert [GLiModernEntityExtractor.get_stored_annotations(document) for document in answer] == wanted
    assert any(wanted)
    assert [document.meta["page"] for document in answer] == [0, 1, 2, 3]
    assert [document.id for document in answer] == [document.id for document in documents]
    assert all("named_entities" not in document.meta for document in documents)
    assert GLiModernEntityExtractor.get_stored_annotations(documents[0]) is None


def test_labels_of_a_run(folder, model, threshold):
    extractor = GLiModernEntityExtractor(str(folder), LABELS, threshold)
    described = {"machine": "an engine or a machine"}
    (document,) = extractor.run([Document(content=TEXT)], labels=described)["documents"]
    assert document.meta["named_entities"] == annotations(model.predict(TEXT, described, threshold)[0])
    with pytest.raises(ValueError, match="labels: expected at least one"):
        extractor.run([Document(content=TEXT)], labels=[])
    with pytest.raises(TypeError, match=r"documents\[0\]: expected a Document, got str"):
        extractor.run(["text"])


def test_one_call_for_all_documents_and_none_for_none():
    class Counting:
        calls = 0

        def predict(self, texts, *arguments, **options):
            self.calls += 1
            return [[] for _ in texts]

    extractor = GLiModernEntityExtractor("nowhere", LABELS)
    assert extractor.run([]) == {"documents": []}  # nothing to load
    extractor._model._model = counting = Counting()
    assert len(extractor.run([Document(content=text) for text in TEXTS])["documents"]) == 3
    assert counting.calls == 1


def test_warm_up(folder):
    extractor = GLiModernEntityExtractor(str(folder), LABELS)
    assert not extractor._model.loaded
    extractor.warm_up()
    loaded = extractor._model.load()
    extractor.warm_up()
    assert extractor._model.load() is loaded
    with pytest.raises(FileNotFoundError):
        GLiModernEntityExtractor("./no/such/folder", LABELS).warm_up()


@pytest.mark.parametrize("labels", [LABELS, {"A": "person", "B": "place"}])
def test_a_saved_pipeline(folder, threshold, labels):
    extractor = GLiModernEntityExtractor(
        str(folder),
        labels,
        {"*": threshold},
        flat=False,
        multi_label=True,
        dtype="fp32",
        reading={"window": 20, "labels_per_prompt": 1},
    )
    pipeline = Pipeline()
    pipeline.add_component("entities", extractor)
    allowed = {"allowed_modules": ["glimodern.*"]}  # Haystack 3 asks which modules it may import
    given = allowed if "allowed_modules" in inspect.signature(Pipeline.loads).parameters else {}
    again = Pipeline.loads(pipeline.dumps(), **given).get_component("entities")
    assert again.to_dict() == extractor.to_dict()
    run = [one.run([Document(content=TEXT)])["documents"][0].meta["named_entities"] for one in (extractor, again)]
    assert run[0] == run[1] != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "labels: expected at least one"),
        ({"labels": "person"}, "labels: expected .* got the string 'person'"),
        ({"threshold": "high"}, "threshold: expected"),
        ({"reading": {"long_texts": "some"}}, "long_texts: expected one of"),
        ({"multi_label": 1.5}, "multi_label: "),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GLiModernEntityExtractor(**{"model": "nowhere", "labels": LABELS, **options})
