"""The spaCy component: found by its entry point, entities on spaCy's tokens, nothing lost unsaid, saved whole."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from glimodern.model.glimodern import GLiModern
from tests.bi_encoder_rows import save_encoder
from tests.conftest import clear_threshold
from tests.test_bi_encoder import make_bi

spacy = pytest.importorskip("spacy", reason="needs the extra spacy")

LABELS = ["person", "place"]
TEXT = "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine ."
TEXTS = [TEXT, "", "Taylor wrote about London in 1843 .", "London", "Ada met Charles .", TEXT[:40]]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spacy") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """In the dtype of the component's model: this machine's."""
    return GLiModern.from_pretrained(folder)


@pytest.fixture(scope="module")
def threshold(model):
    """What about one span in ten of a random model passes."""
    return clear_threshold(model, TEXTS, LABELS)


@pytest.fixture
def pipeline(folder, threshold):
    def make(**config):
        nlp = spacy.blank("en")
        nlp.add_pipe("glimodern", config={"model": str(folder), "labels": LABELS, "threshold": threshold, **config})
        return nlp

    return make


class Finder:
    """Stands in for the model where a test must say what is found; knows `predict` alone."""

    def __init__(self, *found):
        self.found = found
        self.calls = []

    def predict(self, texts, labels, threshold, flat, multi_label, progress):
        self.calls.append(list(texts))
        return [
            [
                {"start": text.index(name), "end": text.index(name) + len(name), "label": label, "score": score}
                for name, label, score in self.found
                if name in text
            ]
            for text in texts
        ]


def find(nlp, *found):
    nlp.get_pipe("glimodern")._model = Finder(*found)
    return nlp


def ents(doc):
    return [(span.text, span.label_, span._.score) for span in doc.ents]


def test_entities_are_those_of_predict(pipeline, model, threshold):
    nlp = pipeline()
    docs = list(nlp.pipe(TEXTS))
    wanted = model.predict(TEXTS, LABELS, threshold)
    assert sum(map(len, wanted)) >= 3
    for doc, entities in zip(docs, wanted, strict=True):
        assert ents(doc) == [(e["text"], e["label"], pytest.approx(e["score"], abs=1e-5)) for e in entities]
    assert ents(nlp(TEXT)) == ents(docs[0])
    assert not docs[0].spans
    assert {token.ent_iob_ for token in docs[0]} >= {"B", "O"}
    assert nlp.pipe_labels["glimodern"] == LABELS
    assert nlp.analyze_pipes()["problems"] == {"glimodern": []}


def test_nested_entities_in_doc_spans(pipeline, model, threshold):
    nlp = pipeline(flat=False, multi_label=True, set_ents=False, spans_key="nested")
    doc = nlp(TEXT)
    wanted = model.predict(TEXT, LABELS, threshold, flat=False, multi_label=True)[0]
    assert len(wanted) > len(model.predict(TEXT, LABELS, threshold)[0])
    group = doc.spans["nested"]
    assert [(span.text, span.label_) for span in group] == [(e["text"], e["label"]) for e in wanted]
    assert group.attrs["scores"].tolist() == pytest.approx([e["score"] for e in wanted], abs=1e-5)
    best = {}
    for e in wanted:
        best[e["text"]] = max(e["score"], best.get(e["text"], 0.0))
    assert [span._.score for span in group] == pytest.approx([best[e["text"]] for e in wanted], abs=1e-5)
    assert not doc.ents


def test_both_places(pipeline):
    doc = pipeline(spans_key="sc")(TEXT)
    assert doc.ents and [(s.text, s.label_) for s in doc.spans["sc"]] == [(s.text, s.label_) for s in doc.ents]


def test_expand_takes_whole_tokens(pipeline):
    nlp = find(pipeline(), ("S", "place", 0.7), ("Lon", "place", 0.9))
    assert ents(nlp("The U.S. and London")) == [("U.S.", "place", 0.7), ("London", "place", 0.9)]


@pytest.mark.parametrize(("mode", "left"), [("strict", ["Ada"]), ("contract", ["Ada", "York"])])
def test_other_alignments_say_what_they_leave_out(pipeline, mode, left):
    nlp = find(pipeline(alignment_mode=mode), ("Ada", "person", 0.9), ("Lon", "place", 0.8), ("w York", "place", 0.8))
    with pytest.warns(UserWarning, match=f"alignment_mode '{mode}' leaves out entities"):
        assert [name for name, *_ in ents(nlp("Ada left London for New York"))] == left


def test_two_entities_on_one_token(pipeline):
    nlp = find(pipeline(spans_key="sc"), ("U", "place", 0.6), ("S", "person", 0.7))
    with pytest.warns(UserWarning, match=r"share a token with a better one.*left out of doc\.ents"):
        doc = nlp("The U.S. won")
    assert ents(doc) == [("U.S.", "person", 0.7)]
    assert [span.label_ for span in doc.spans["sc"]] == ["place", "person"]
    assert doc.spans["sc"].attrs["scores"].tolist() == pytest.approx([0.6, 0.7])


@pytest.mark.parametrize(
    ("overwrite", "expected"),
    [(False, [("Ada Lovelace", "NAME"), ("London", "place")]), (True, [("Ada", "person"), ("London", "place")])],
)
def test_entities_that_stand_there(pipeline, overwrite, expected):
    nlp = find(pipeline(overwrite_ents=overwrite), ("Ada", "person", 0.9), ("London", "place", 0.8))
    nlp.add_pipe("entity_ruler", before="glimodern").add_patterns([{"label": "NAME", "pattern": "Ada Lovelace"}])
    if overwrite:
        doc = nlp("Ada Lovelace left London")
    else:
        with pytest.warns(UserWarning, match=r"with an existing one, are left out"):
            doc = nlp("Ada Lovelace left London")
    assert [(span.text, span.label_) for span in doc.ents] == expected


def test_a_second_time_changes_nothing(pipeline, recwarn):
    nlp = find(pipeline(), ("Ada", "person", 0.9), ("London", "place", 0.8))
    doc = nlp("Ada left London")
    assert ents(nlp.get_pipe("glimodern")(doc)) == [("Ada", "person", 0.9), ("London", "place", 0.8)]
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]


def test_model_and_labels_are_asked_for():
    with pytest.raises(ValueError, match=r"(?s)model.*field required.*labels.*field required|missing"):
        spacy.blank("en").add_pipe("glimodern")


def test_pipe_streams_by_batch(pipeline):
    nlp = find(pipeline(), ("London", "place", 0.9))
    finder = nlp.get_pipe("glimodern")._model
    taken = []

    def texts():
        for i in range(10):
            taken.append(i)
            yield f"London {i}"

    stream = nlp.pipe(texts(), batch_size=3)
    assert next(stream).text == "London 0"
    assert len(taken) <= 4  # not the whole stream
    assert [doc.text for doc in stream] == [f"London {i}" for i in range(1, 10)]
    assert [len(call) for call in finder.calls] == [3, 3, 3, 1]


def test_errors_go_to_the_handler(pipeline):
    nlp = pipeline(labels=["person", "x" * 5000])
    with pytest.raises(ValueError, match="labels do not fit the prompt"):
        nlp(TEXT)
    failed = []
    nlp.set_error_handler(lambda name, component, docs, error: failed.append((name, len(docs), str(error))))
    assert list(nlp.pipe([TEXT, TEXT])) == []
    assert [(name, count) for name, count, _ in failed] == [("glimodern", 2)]
    assert "labels do not fit the prompt" in failed[0][2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"labels": []}, "labels: expected at least one"),
        ({"labels": ["person", " "]}, r"labels\[1\]: expected a name"),
        ({"threshold": 1.5}, "threshold: expected a probability"),
        ({"alignment_mode": "outside"}, r"alignment_mode: expected one of .*'expand'.* got 'outside'"),
        ({"set_ents": False}, "set_ents, spans_key: expected a place for the entities, got neither"),
        ({"flat": False}, "set_ents: expected flat and not multi_label, .* got flat=False"),
        ({"multi_label": True}, "set_ents: expected flat and not multi_label"),
        ({"labels": {"A": "person", "B": ""}}, r"labels\['B'\]: expected a name"),
        ({"treshold": 0.3}, "treshold"),
        ({"labels": 3}, "labels"),
    ],
)
def test_wrong_config(pipeline, config, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**config)


def test_descriptions(pipeline, model, threshold, tmp_path):
    """A mapping asks with its descriptions and gives spans its labels, also after saving."""
    described = dict(zip("ABC", LABELS, strict=False))
    nlp = pipeline(labels=described)
    wanted = [(e["text"], e["label"]) for e in model.predict(TEXT, described, threshold)[0]]
    assert [(name, label) for name, label, _ in ents(nlp(TEXT))] == wanted != []
    assert nlp.get_pipe("glimodern").labels == tuple(described)
    nlp.to_disk(tmp_path / "nlp")
    assert [(name, label) for name, label, _ in ents(spacy.load(tmp_path / "nlp")(TEXT))] == wanted


def test_a_checkpoint_that_is_not_there(pipeline):
    nlp = pipeline(model="./no/such/folder")
    assert not hasattr(nlp.get_pipe("glimodern"), "model")  # spaCy asks so of any component, which must not load it
    with pytest.raises(FileNotFoundError, match="no such folder"):
        nlp(TEXT)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        nlp.initialize()


def test_revision_and_dtype(pipeline, folder):
    with pytest.raises(ValueError, match="revision: expected None for the local folder .*, got 'v1'"):
        pipeline(revision="v1").initialize()
    nlp = pipeline(dtype="bf16")
    nlp.initialize()
    assert nlp.get_pipe("glimodern").load().dtype_name == "bf16"


def test_a_saved_pipeline_is_whole(pipeline, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    nlp = pipeline(model=str(tmp_path / "model"), dtype="bf16")
    wanted = ents(nlp(TEXT))
    nlp.to_disk(tmp_path / "nlp")
    shutil.rmtree(tmp_path / "model")  # what the config names is gone
    again = spacy.load(tmp_path / "nlp")
    assert ents(again(TEXT)) == wanted != []
    again.to_disk(tmp_path / "nlp")  # over itself
    (tmp_path / "nlp").rename(tmp_path / "moved")
    moved = spacy.load(tmp_path / "moved", config={"components": {"glimodern": {"threshold": 1.0}}})
    assert moved(TEXT).ents == ()
    stored = GLiModern.from_pretrained(tmp_path / "moved" / "glimodern", trainable=True)
    original = GLiModern.from_pretrained(folder, trainable=True)
    for name, tensor in original.state_dict().items():  # fp32 as in the checkpoint, though the component ran bf16
        assert stored.state_dict()[name].equal(tensor), name

    data = moved.to_bytes()
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        moved.to_disk(tmp_path / "third")
    fresh = spacy.util.load_model_from_config(again.config).from_bytes(data)
    assert ents(fresh(TEXT)) == wanted
    fresh.to_disk(tmp_path / "third")
    assert ents(spacy.load(tmp_path / "third")(TEXT)) == wanted


def test_a_bi_encoder_is_saved_whole(pipeline, tmp_path):
    """With the tokenizer of its label encoder, in a folder of its own."""
    save_encoder(tmp_path / "labels", "bert", 48, 330)
    make_bi(tmp_path / "labels").save_pretrained(tmp_path / "model")
    nlp = pipeline(model=str(tmp_path / "model"), threshold=0.0)
    wanted = ents(nlp(TEXT))
    nlp.to_disk(tmp_path / "nlp")
    data = nlp.to_bytes()
    shutil.rmtree(tmp_path / "labels")
    shutil.rmtree(tmp_path / "model")
    assert ents(spacy.load(tmp_path / "nlp")(TEXT)) == wanted != []
    assert ents(spacy.util.load_model_from_config(nlp.config).from_bytes(data)(TEXT)) == wanted


@spacy.Language.component("note_threads")
def note_threads(doc):
    doc.user_data["threads"] = torch.get_num_threads()
    return doc


def test_processes(pipeline):
    """Forked after the model has run: one thread each, as those of the parent are not there to wait for."""
    nlp = pipeline(spans_key="sc")
    nlp.add_pipe("note_threads")
    wanted = [ents(nlp(text)) for text in TEXTS]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        docs = list(nlp.pipe(TEXTS, n_process=2, batch_size=2))
    finally:
        torch.set_num_threads(threads)
    assert [ents(doc) for doc in docs] == [
        [(text, label, pytest.approx(score, abs=1e-5)) for text, label, score in entities] for entities in wanted
    ]
    if multiprocessing.get_start_method() == "fork":
        assert {doc.user_data["threads"] for doc in docs} == {1}


def test_pickled(pipeline):
    """As processes that are not forked get it: the model is loaded there."""
    nlp = pipeline()
    wanted = ents(nlp(TEXT))
    component = pickle.loads(pickle.dumps(nlp.get_pipe("glimodern")))
    assert component._model is None
    assert ents(component(nlp.make_doc(TEXT))) == wanted != []


def test_scores_of_gold(pipeline):
    from spacy.training import Example

    nlp = find(pipeline(), ("Ada", "person", 0.9), ("left", "place", 0.8))
    gold = {"entities": [(0, 3, "person"), (9, 15, "place")]}
    scores = nlp.evaluate([Example.from_dict(nlp.make_doc("Ada left London"), gold)])
    assert (scores["ents_p"], scores["ents_r"]) == (0.5, 0.5)


def test_the_entry_point_imports_nothing_heavy():
    """spaCy loads it whenever a pipeline is made: here in a process where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None; from importlib.metadata import entry_points; "
        "(found,) = entry_points(group='spacy_factories', name='glimodern'); print(found.load().__name__)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "make_component", answer.stderr
