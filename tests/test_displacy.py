"""`Entities.displacy`: what spaCy's renderer takes, in both styles."""

import html
import re

import pytest

from glimodern.inference.entities import Entities

TEXT = "😀 Ada left New York."
ADA = {"start": 2, "end": 5, "text": "Ada", "label": "person", "score": 0.9}
CITY = {"start": 11, "end": 19, "text": "New York", "label": "city", "score": 0.8}
PART = {"start": 15, "end": 18, "text": "Yor", "label": "part", "score": 0.7}


def test_ent_style():
    shown = Entities([ADA, CITY]).displacy(TEXT)
    assert shown["text"] == TEXT
    assert [(TEXT[ent["start"] : ent["end"]], ent["label"]) for ent in shown["ents"]] == [
        ("Ada", "person"),
        ("New York", "city"),
    ]


def test_span_style_cuts_tokens_where_entities_begin_and_end():
    shown = Entities([ADA, CITY, PART]).displacy(TEXT, "span")
    assert shown["tokens"] == ["😀", "Ada", "left", "New", "Yor", "k", "."]
    spans = [(shown["tokens"][span["start_token"] : span["end_token"]], span["label"]) for span in shown["spans"]]
    assert spans == [(["Ada"], "person"), (["New", "Yor", "k"], "city"), (["Yor"], "part")]


def test_what_is_refused():
    with pytest.raises(ValueError, match="style: expected 'span' for entities that overlap"):
        Entities([ADA, CITY, PART]).displacy(TEXT)
    with pytest.raises(ValueError, match="style: expected 'ent' or 'span', got 'dep'"):
        Entities([ADA]).displacy(TEXT, "dep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text: expected the text of these entities, with 'Ada' at 2 to 5, got 'a l'"):
        Entities([ADA]).displacy("Ada left")
    with pytest.raises(TypeError, match="text: expected a str"):
        Entities([ADA]).displacy([TEXT])  # type: ignore[arg-type]


def test_no_entity():
    assert Entities().displacy("", "span") == {"text": "", "spans": [], "tokens": [], "title": None}
    assert Entities().displacy("a") == {"text": "a", "ents": [], "title": None}


@pytest.mark.parametrize("style", ["ent", "span"])
def test_spacy_renders_it(style):
    displacy = pytest.importorskip("spacy", reason="needs the extra spacy").displacy
    entities = Entities([CITY, ADA] if style == "ent" else [CITY, ADA, PART])
    page = displacy.render(entities.displacy(TEXT, style), style=style, manual=True, jupyter=False)
    seen = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert "😀 Ada person left New" in seen if style == "ent" else "😀 Ada person left New city Yor" in seen


def test_with_a_model(tiny_model):
    text = "Ada met Charles in London ."
    (found,) = tiny_model.predict(text, ["person", "place"], 0.0, flat=False, multi_label=True, top_k=6)
    shown = found.displacy(text, "span")
    for span, entity in zip(shown["spans"], found, strict=True):
        assert " ".join(shown["tokens"][span["start_token"] : span["end_token"]]) == entity["text"]
