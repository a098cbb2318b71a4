"""Redaction: placeholders, masks and pseudonyms, with offsets in the redacted text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.inference.entities import Entities
from glimodern.inference.redaction import STYLES, redact

KEY = b"k" * 16


def spans(text, *named):
    """Entities at the places of (part of the text, label), each sought after the one before."""
    found, end = [], 0
    for part, label in named:
        start = text.index(part, end)
        end = start + len(part)
        found.append({"start": start, "end": end, "text": part, "label": label, "score": 0.5})
    return found


def test_placeholders_count_by_label_and_the_same_text_has_the_same_number():
    text = "Ada met Charles, then ADA  met Bob in Ada."
    found = spans(text, ("Ada", "person"), ("Charles", "person"), ("ADA", "person"), ("Bob", "person"), ("Ada", "city"))
    assert redact(text, found).text == "[PERSON_1] met [PERSON_2], then [PERSON_1]  met [PERSON_3] in [CITY_1]."
    text = "Ada  Lovelace and ada\nLOVELACE"
    found = spans(text, ("Ada  Lovelace", "person"), ("ada\nLOVELACE", "person"))
    assert redact(text, found).text == "[PERSON_1] and [PERSON_1]"


def test_adjacent_entities_in_any_order_and_a_whole_text():
    text = "AdaBob"
    found = spans(text, ("Ada", "person"), ("Bob", "city"))
    assert redact(text, found[::-1]).text == "[PERSON_1][CITY_1]"
    assert redact(text, spans(text, ("AdaBob", "x")), "mask").text == "******"
    assert redact("", []) == ("", [])


def test_a_placeholder_of_the_text_is_not_used_again():
    text = "[PERSON_1] is not Ada, nor [PERSON_2] Bob; [[PERSON_4]"
    found = spans(text, ("Ada", "person"), ("Bob", "person"))
    assert redact(text, found).text == "[PERSON_1] is not [PERSON_3], nor [PERSON_2] [PERSON_5]; [[PERSON_4]"


def test_a_long_text_is_searched_for_placeholders_once():
    class Text(str):
        searches = 0

        def __contains__(self, part):
            Text.searches += 1
            return super().__contains__(part)

    text = Text(" ".join(f"name{i}" for i in range(100)))
    found = spans(text, *((part, "person") for part in text.split()))
    assert redact(text, found).text.endswith("[PERSON_100]")
    assert Text.searches <= 1


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("date of birth", "DATE_OF_BIRTH"),
        (" e-mail! ", "E_MAIL"),
        ("\U0001f3e5", "ENTITY"),
        ("!?", "ENTITY"),
        ("a]b[c", "A_B_C"),
        ("\u05d0\u05d3\u05dd", "\u05d0\u05d3\u05dd"),
        (
            "\u0935\u094d\u092f\u0915\u094d\u0924\u093f",
            "\u0935\u094d\u092f\u0915\u094d\u0924\u093f",
        ),  # Hindi, with marks
        ("\u202eperson", "PERSON"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_names_of_labels(label, name):
    assert redact("Ada", spans("Ada", ("Ada", label))).text == f"[{name}_1]"
    assert redact("Ada", spans("Ada", ("Ada", label)), "pseudonym", key=KEY).text.startswith(f"{name}_")


def test_pseudonyms_depend_on_label_text_and_key():
    def code(text, label, key=KEY):
        return redact(text, spans(text, (text, label)), "pseudonym", key=key).text

    assert code("Ada", "person") == code("ADA", "person")
    assert (
        len({code("Ada", "person"), code("Bob", "person"), code("Ada", "city"), code("Ada", "person", b"x" * 16)}) == 4
    )


def test_entities_keep_their_fields_windows_and_words_cut():
    text = "Ada and Bob"
    found = Entities(spans(text, ("Ada", "person"), ("Bob", "person")), 3, 2)
    redacted = redact(text, found).entities
    assert (redacted.words_cut, redacted.windows) == (3, 2)
    places = [(entity["redacted_start"], entity["redacted_end"]) for entity in redacted]
    assert places == [(0, 10), (15, 25)]
    assert [entity["score"] for entity in redacted] == [0.5, 0.5]
    assert "replacement" not in found[0]


@pytest.mark.parametrize(("start", "end"), [(2, 5), (0, 3), (4, 4), (5, 4), (4, 99), (-1, 2)])
def test_spans_that_overlap_or_lie_outside(start, end):
    found = [{"start": 0, "end": 3, "label": "x"}, {"start": start, "end": end, "label": "x"}]
    with pytest.raises(ValueError, match="entities: expected spans inside the text that do not overlap"):
        redact("Ada and Bob", found)


def test_wrong_styles_and_keys():
    with pytest.raises(ValueError, match="style: expected one of placeholder, mask, pseudonym, got 'blur'"):
        redact("Ada", [], "blur")
    with pytest.raises(ValueError, match="key: expected secret bytes"):
        redact("Ada", [], "pseudonym")


@settings(deadline=None, derandomize=True)
@given(st.text("[]_1A \u00e9\u05d0\U0001f600", max_size=40), st.data())
def test_offsets_and_what_is_kept(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    found = [
        {"start": start, "end": end, "label": data.draw(st.sampled_from(["a", "A", "a 1", "!"]))}
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    for style in STYLES:
        redacted, entities = redact(text, found, style, key=KEY)
        rebuilt, end = "", 0
        for entity in entities:
            assert redacted[entity["redacted_start"] : entity["redacted_end"]] == entity["replacement"]
            rebuilt += redacted[end : entity["redacted_start"]] + text[entity["start"] : entity["end"]]
            end = entity["redacted_end"]
        assert rebuilt + redacted[end:] == text
        if style == "placeholder":
            assert not any(entity["replacement"] in text for entity in entities)
            for entity in entities:
                same = [other for other in entities if other["replacement"] == entity["replacement"]]
                assert redacted.count(entity["replacement"]) == len(same)
        if style == "mask":
            assert len(redacted) == len(text)
