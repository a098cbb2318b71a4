"""Programs written for gliner run on this model: same names, same arguments, same entities."""

import inspect

import pytest

from glimodern.model.glimodern import GLiModern
from glimodern.model.gliner_api import GlinerApi
from tests.conftest import clear_threshold

LABELS = ["person", "political party", "country"]
TEXTS = [
    "Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine .",
    "",
    "Taylor wrote about London in 1843 .",
    "Charles Babbage (of London) met no-one.",
]
NAMES = ("predict_entities", "batch_predict_entities", "inference")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A public model with random weights, and the same checkpoint here."""
    pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    from tests.test_gliner_parity import random_public_model

    folder = tmp_path_factory.mktemp("gliner")
    public = random_public_model(folder / "public", "bert", folder, 48)
    return public, GLiModern.from_pretrained(folder / "public", dtype="fp32")


@pytest.fixture(scope="module")
def threshold(pair):
    return clear_threshold(pair[1], TEXTS, LABELS)


def assert_same(got, wanted):
    assert len(got) == len(wanted) and sum(map(len, wanted)) > 0
    for ours, theirs in zip(got, wanted, strict=True):
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in theirs] == ours


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    model = pytest.importorskip("gliner.model", reason="needs the extra peers (gliner)")
    theirs = inspect.signature(getattr(model.UniEncoderSpanGLiNER, name)).parameters.values()
    ours = inspect.signature(getattr(GlinerApi, name)).parameters.values()
    assert [(p.name, p.default, p.kind) for p in ours if p.name != "long_texts"] == [
        (p.name, p.default, p.kind) for p in theirs if p.name != "external_inputs"
    ]


@pytest.mark.parametrize("options", [{}, {"flat_ner": False}, {"multi_label": True}, {"batch_size": 1}])
def test_same_entities(pair, threshold, options):
    public, ours = pair
    assert_same(
        ours.inference(TEXTS, LABELS, threshold=threshold, **options),
        public.inference(TEXTS, LABELS, threshold=threshold, **options),
    )
    assert_same(
        [ours.predict_entities(TEXTS[0], LABELS, threshold=threshold, **options)],
        [public.predict_entities(TEXTS[0], LABELS, threshold=threshold, **options)],
    )
    with pytest.warns(FutureWarning, match="batch_predict_entities is deprecated"):
        wanted = public.batch_predict_entities(TEXTS, LABELS, threshold=threshold, **options)
    assert_same(ours.batch_predict_entities(TEXTS, LABELS, threshold=threshold, **options), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_cut_as_gliner_cuts_them(tiny_model, name):
    """Unless they are asked for in windows."""
    text = " ".join(f"Ada met Charles number {i} in London ." for i in range(40))
    texts = text if name == "predict_entities" else [text]

    def found(answer):
        (entities,) = [answer] if name == "predict_entities" else answer
        return entities

    with pytest.warns(UserWarning, match="words at their ends were not read"):
        cut = found(getattr(tiny_model, name)(texts, LABELS, threshold=0.2))
        assert cut == tiny_model.predict(text, LABELS, 0.2, long_texts="cut")[0] and cut.truncated
    whole = found(getattr(tiny_model, name)(texts, LABELS, threshold=0.2, long_texts="windows"))
    assert whole == tiny_model.predict(text, LABELS, 0.2)[0] and not whole.truncated
    assert whole[-1]["end"] > cut[-1]["end"]
    with pytest.raises(ValueError, match=r"texts\[0\]: expected at most"):
        getattr(tiny_model, name)(texts, LABELS, long_texts="error")


@pytest.mark.parametrize(
    "labels",
    [
        "person",
        {"name": "person", "party": "political party"},
        [["person"], LABELS, ["country", "person"], ["person"]],
        [{"name": "person"}, {"x": "country"}, {"y": "country", "z": "person"}, {"name": "person"}],
        ["person", "country", "person"],
    ],
)
def test_labels(pair, threshold, labels):
    public, ours = pair
    assert_same(ours.inference(TEXTS, labels, True, threshold), public.inference(TEXTS, labels, True, threshold))


def test_one_string_is_one_text(pair, threshold):
    public, ours = pair
    assert_same(
        ours.inference(TEXTS[0], LABELS, threshold=threshold), public.inference(TEXTS[0], LABELS, threshold=threshold)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"return_class_probs": 1}, TypeError, "return_class_probs: expected True or False, got int 1"),
        ({"input_spans": [[], [], []]}, ValueError, "spans: expected one list of spans per text.*got"),
        ({"return_vectors": True}, ValueError, "return_vectors: expected no value"),
        ({"treshold": 0.2}, TypeError, "unexpected keyword argument 'treshold'"),
        ({"threshold": 2.0}, ValueError, "threshold: expected a probability"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_use(tiny_model, name, options, error, message):
    text = TEXTS[0] if name == "predict_entities" else TEXTS
    with pytest.raises(error, match=message):
        getattr(tiny_model, name)(text, LABELS, **options)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["person", 3], TypeError, r"labels\[1\]: expected a string, got int"),
        ([["person"]], ValueError, r"expected one label set per text \(4\), got 1"),
        ({"a": "person", "b": "person"}, ValueError, "labels: expected a different description for each label"),
    ],
)
def test_wrong_labels(tiny_model, labels, error, message):
    with pytest.raises(error, match=message):
        tiny_model.inference(TEXTS, labels)


def test_gliner_spacy_runs_on_this_model(pair, threshold, tmp_path):
    """The real gliner-spacy component, with its model swapped for this one, finds the same entities."""
    pytest.importorskip("gliner_spacy", reason="needs the package gliner-spacy")
    spacy = pytest.importorskip("spacy", reason="needs the extra spacy")
    public, ours = pair
    public.save_pretrained(tmp_path / "public", safe_serialization=True)
    for style in ("ent", "span"):
        nlp = spacy.blank("en")
        component = nlp.add_pipe(
            "gliner_spacy",
            config={"gliner_model": str(tmp_path / "public"), "labels": LABELS, "threshold": threshold, "style": style},
        )
        answers = []
        for model in (public, ours):
            component.model = model
            docs = [nlp(text) for text in TEXTS]
            spans = [list(doc.ents if style == "ent" else doc.spans["sc"]) for doc in docs]
            answers.append([[(s.start, s.end, s.label_, s._.score) for s in found] for found in spans])
        assert sum(map(len, answers[0])) > 0
        for theirs, mine in zip(*answers, strict=True):
            assert [(*span, pytest.approx(score, abs=1e-5)) for *span, score in theirs] == mine
