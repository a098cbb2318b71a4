"""Given spans, the probabilities of all labels, and the vectors of spans, in predict and under gliner's names."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from glimodern import GLiModern, ops
from glimodern.inputs.words import split_words
from tests.bi_encoder_rows import save_encoder, spread_types
from tests.conftest import WORDS, make_tiny_model

LABELS = ["person", "place", "machine"]
TEXT = " ".join(WORDS)
LONG = " ".join(WORDS[(n * n + n // 7) % len(WORDS)] for n in range(150))
EVERYTHING = {"threshold": 0.0, "flat": False, "multi_label": True}


@pytest.fixture(scope="module", params=["uni fp32", "uni packed", "uni bf16", "bi fp32"])
def model(request, tmp_path_factory):
    if request.param == "bi fp32":
        folder = tmp_path_factory.mktemp("labels")
        save_encoder(folder, "bert", 48, 330)
        made = make_tiny_model(labels_encoder=str(folder))
        spread_types(made.head.prompt)
        return made.eval()
    made = make_tiny_model()
    if request.param == "uni fp32":
        return made.eval()
    folder = tmp_path_factory.mktemp("model") / "model"
    made.save_pretrained(folder)
    return GLiModern.from_pretrained(folder, dtype=request.param[4:].replace("packed", "fp32"))


def probabilities(model, text, labels=LABELS, **options):
    """{(start, end, label): probability} of all spans, from a search without a threshold."""
    return {
        (e["start"], e["end"], e["label"]): e["score"] for e in model.predict(text, labels, **EVERYTHING, **options)[0]
    }


def tolerance(model):
    return 2e-2 if model.dtype_name == "bf16" else 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"labels_per_prompt": 2}, {"window": "sentence"}, {"window": 40, "context": 4}]
)
@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_scores_of_given_spans_are_those_of_a_search(model, text, options):
    words = split_words(text)
    pairs = [(0, 0), (3, 5), (len(words) - 2, len(words) - 1), (len(words) // 2, len(words) // 2 + 2)]
    spans = [(words[first].start, words[last].end) for first, last in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searched = {}
        for start, end in spans:  # alone, so that no crossing span displaces it
            (found,) = model.predict([text], LABELS, spans=[[(start, end)]], **EVERYTHING, **options)
            searched.update({(e["start"], e["end"], e["label"]): e["score"] for e in found})
        (together,) = model.predict([text], LABELS, spans=[spans], **EVERYTHING, **options)
        every = probabilities(model, text, **options)
    all_at_once = {(e["start"], e["end"], e["label"]): e["score"] for e in together}
    if model.packed_dtype is None:  # PyTorch's products depend on the number of rows
        assert all_at_once == pytest.approx(searched, abs=1e-6)
    else:
        assert all_at_once == searched
    assert set(searched) == {(*span, label) for span in spans for label in LABELS}
    common = set(searched) & set(every)
    assert len(common) >= 3
    for key in common:
        assert searched[key] == (pytest.approx(every[key], abs=1e-6) if model.packed_dtype is None else every[key])


def test_the_threshold_and_the_search_act_on_given_spans(model):
    spans = [[(0, len("Ada Lovelace")), (0, len("Ada"))]]
    (scored,) = model.predict([TEXT], LABELS, spans=spans, **EVERYTHING)
    scores = sorted((e["score"] for e in scored), reverse=True)
    middle = (scores[1] + scores[2]) / 2
    (above,) = model.predict([TEXT], LABELS, threshold=middle, flat=False, multi_label=True, spans=spans)
    assert sorted((e["score"] for e in above), reverse=True) == scores[:2]
    (flat,) = model.predict([TEXT], LABELS, threshold=0.0, spans=spans)
    assert [e["score"] for e in flat] == scores[:1]
    (best,) = model.predict([TEXT], LABELS, spans=spans, **EVERYTHING, top_k=2)
    assert sorted((e["score"] for e in best), reverse=True) == scores[:2]


def test_entities_may_be_given_and_words_are_widened_to(model):
    (found,) = model.predict(TEXT, LABELS, threshold=0.0)
    again = model.predict(TEXT, LABELS, threshold=0.0, spans=found)
    assert [(e["start"], e["end"]) for e in again[0]] == [(e["start"], e["end"]) for e in found]
    start, end = TEXT.index("ovelac"), TEXT.index("ovelac") + 6
    with pytest.warns(UserWarning, match="spans: 1 spans begin or end inside a word; they were widened"):
        (widened,) = model.predict(TEXT, LABELS, threshold=0.0, spans=[(start, end)])
    assert [e["text"] for e in widened] == ["Lovelace"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # white space at a span's ends is no word
        (blanks,) = model.predict(TEXT, LABELS, threshold=0.0, spans=[(start - 2, start + 8)])
    assert [e["text"] for e in blanks] == ["Lovelace"]


def test_of_many_texts_and_streams(model):
    texts, spans = [TEXT, "", "London", TEXT], [[(0, 3)], [], [(0, 6)], []]
    found = model.predict(texts, LABELS, spans=spans, threshold=0.0)
    assert [[e["text"] for e in entities] for entities in found] == [["Ada"], [], ["London"], []]
    assert list(model.predict(iter(texts), LABELS, spans=iter(spans), threshold=0.0)) == found
    for given, message in (([[]] * 3, "got 3"), ([[]] * 5, r"\(4\), got more")):
        with pytest.raises(ValueError, match=rf"spans: expected one list of spans per text.*{message}"):
            model.predict(texts, LABELS, spans=given)


@pytest.mark.parametrize(
    ("spans", "error", "message"),
    [
        ([(0, 1000)], ValueError, rf"spans[0][0]: expected 0 <= start < end <= {len(TEXT)}, the length of the text"),
        ([(3, 3)], ValueError, "spans[0][0]: expected 0 <= start < end"),
        ([(0, 3), (-1, 4)], ValueError, "spans[0][1]: expected a character offset of at least 0, got -1"),
        ([(3, 4)], ValueError, "spans[0][0]: expected a span with a word, got ' '"),
        ([(0, len(TEXT))], ValueError, "spans[0][0]: expected at most 6 words, the model's max_width, got"),
        ([(0, 1.5)], TypeError, "spans[0][0]: expected a character offset, got float 1.5"),
        ([(0, True)], TypeError, "spans[0][0]: expected a character offset, got bool True"),
        ([(0, 1, 2)], TypeError, "spans[0][0]: expected (start, end) in characters, or a mapping with these keys"),
        ([{"start": 0}], TypeError, "spans[0][0]: expected (start, end) in characters, or a mapping with these keys"),
        ("ab", TypeError, "spans: expected one list per text of (start, end) in characters, got str 'ab'"),
        (5, TypeError, "spans: expected one list per text of (start, end) in characters, got int 5"),
    ],
)
def test_bad_spans_are_one_line(tiny_model, spans, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        tiny_model.predict(TEXT, LABELS, spans=spans)


def test_a_span_beyond_what_is_read_is_not_found(tiny_model):
    last = split_words(LONG)[-1]
    with pytest.warns(UserWarning, match="were not read"):
        results = tiny_model.predict(
            [LONG, TEXT], LABELS, threshold=0.0, spans=[[(last.start, last.end)], []], long_texts="cut"
        )
    assert [list(entities) for entities in results] == [[], []]
    (found,) = tiny_model.predict(LONG, LABELS, threshold=0.0, spans=[(last.start, last.end)])
    assert len(found) == 1 and found.windows > 1


@pytest.mark.parametrize("options", [{}, {"labels_per_prompt": 1}])
@pytest.mark.parametrize("text", [TEXT, LONG], ids=["short", "long"])
def test_probabilities_of_all_labels(model, text, options):
    (found,) = model.predict(text, LABELS, threshold=0.0, scores="all", **options)
    (plain,) = model.predict(text, LABELS, threshold=0.0, **options)
    assert [{key: e[key] for key in e if key != "scores"} for e in found] == plain and found
    spans = [(e["start"], e["end"]) for e in found]
    (every,) = model.predict(text, LABELS, spans=spans, **EVERYTHING, **options)
    wanted = {(e["start"], e["end"], e["label"]): e["score"] for e in every}
    for entity in found:
        assert list(entity["scores"]) == LABELS and entity["scores"][entity["label"]] == entity["score"]
        for label, score in entity["scores"].items():
            assert score == pytest.approx(wanted[entity["start"], entity["end"], label], abs=tolerance(model))


def test_vectors_are_those_of_the_spans(model):
    (found,) = model.predict(TEXT, LABELS, threshold=0.0, vectors=True)
    words = split_words(TEXT)
    batch = model.packer.pack([[word.text for word in words]], [LABELS])
    with torch.no_grad():
        if model.label_encoder is None:
            a, b, w2, b2, _ = model.head.factors(*model.encode(batch))
        else:
            vectors, _ = model._encode_texts(batch, batch.type_index[:0])
            a, b, w2, b2, _ = model.head.factors(vectors, model.label_encoder(LABELS))
    last = w2.unpack().T.to(a.dtype) if isinstance(w2, ops.PackedWeight) else w2
    starts, ends = [word.start for word in words], [word.end for word in words]
    for entity in found:
        first, end = starts.index(entity["start"]), ends.index(entity["end"])
        wanted = torch.relu(a[first].float() + b[end].float()) @ last.float().T + b2.float()
        assert entity["vector"].dtype == np.float32 and entity["vector"].shape == (model.config.hidden_size,)
        np.testing.assert_allclose(entity["vector"], wanted.detach().numpy(), atol=10 * tolerance(model))
    assert "vector" not in model.predict(TEXT, LABELS, threshold=0.0)[0][0]


def test_without_entities_there_is_nothing_to_score(model):
    results = model.predict(["", TEXT], LABELS, threshold=1.0, scores="all", vectors=True)
    assert [list(entities) for entities in results] == [[], []]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scores": "some"}, ValueError, "scores: expected 'found' or 'all', got 'some'"),
        ({"scores": True}, ValueError, "scores: expected 'found' or 'all', got True"),
        ({"vectors": 1}, TypeError, "vectors: expected True or False, got int 1"),
        ({"vector": True}, TypeError, "unexpected keyword argument 'vector': .* vector is called vectors here"),
    ],
)
def test_bad_options(tiny_model, options, error, message):
    with pytest.raises(error, match=message):
        tiny_model.predict(TEXT, LABELS, **options)


@pytest.mark.parametrize("span_mode", ["markerV0", "token_level"])
def test_nan_is_not_hidden(span_mode):
    """No threshold lets it through, so it would look like a span that is no entity."""
    model = make_tiny_model(dropout=0.0, span_mode=span_mode).requires_grad_(False)
    table = model.encoder.model.embeddings.tok_embeddings.weight
    known, broken = (set(model.packer.pack([words], [LABELS]).input_ids.tolist()) for words in (WORDS[:2], WORDS))
    table[list(broken - known)] = torch.nan
    given = iter([[(0, 3)], [(0, 3)]])
    stream = model.predict(iter([" ".join(WORDS[:2]), TEXT]), LABELS, 0.0, spans=given, batch_tokens=8)
    assert len(next(stream)) == 1
    with pytest.raises(ValueError, match="^scores: expected numbers, got NaN; the model's weights"):
        next(stream)


def test_out_of_memory_splits_the_scoring_too(tiny_model, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_model = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
    texts, spans = [TEXT] * 6, [[(0, 3)]] * 6
    wanted = tiny_model.predict(texts, LABELS, spans=spans, threshold=0.0)
    score = tiny_model._score_spans

    def limited(batch, *arguments, **options):
        if len(batch.cu_seqlens) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return score(batch, *arguments, **options)

    monkeypatch.setattr(tiny_model, "_score_spans", limited)
    assert tiny_model.predict(texts, LABELS, spans=spans, threshold=0.0) == wanted


def test_gliners_names_give_what_gliner_gives(shared):
    gliner = pytest.importorskip("gliner", reason="needs the extra peers (the public gliner package)")
    folder = shared / "checkpoints" / "gliner-minilm-mix"
    public, ours = gliner.GLiNER.from_pretrained(str(folder)), GLiModern.from_pretrained(folder, dtype="fp32")
    texts = ["Ada Lovelace met Charles Babbage in London .", "Bob lives in Oslo ."]
    labels = ["person", "city", "country", "river", "dog", "date"]
    given = [[{"start": 0, "end": 12}, {"start": 36, "end": 42}], [{"start": 0, "end": 3}]]
    for options in ({"return_class_probs": True, "threshold": 0.3}, {"input_spans": given, "threshold": 0.1}):
        theirs, mine = public.inference(texts, labels, **options), ours.inference(texts, labels, **options)
        assert sum(map(len, theirs)) >= 3
        for wanted, got in zip(theirs, mine, strict=True):
            assert len(wanted) == len(got)
            for one, other in zip(wanted, got, strict=True):
                assert list(one) == list(other)
                assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
                probs, ours_probs = one.pop("class_probs", {}), other.pop("class_probs", {})
                assert list(probs) == list(ours_probs) and probs == pytest.approx(ours_probs, abs=1e-5)
                assert one == other
