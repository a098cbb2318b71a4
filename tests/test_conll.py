"""CoNLL columns: which hold words and tags, what is a comment, and every tagging scheme."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.data import Example, load_dataset
from glimodern.data.conll import tagged_spans


def read(folder: Path, text: str, **options: object) -> list[Example]:
    path = folder / "x.conll"
    path.write_bytes(text.encode())
    return load_dataset(path, **options).examples  # type: ignore[arg-type]


def pairs(examples: list[Example]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    return [(" ".join(example.words), example.entities) for example in examples]


LAYOUTS = {
    "a word and its tag": ("London\tB-LOC\ncalls\tO\n", "London calls", [(0, 0, "location")]),
    "an index": ("1\tLondon\tB-LOC", "London", [(0, 0, "location")]),
    "an index from 0": ("0 New B-LOC\n1 York I-LOC\n2 calls O\n", "New York calls", [(0, 1, "location")]),
    "Universal NER": (
        "# sent_id = 1\n# text = Bonn is O\n1\tBonn\tB-LOC\t-\tann\n2\tis\tO\t-\tann\n", "Bonn is", [(0, 0, "location")]
    ),
    "CoNLL-U's words in parts and empty nodes": (
        "1\tvado\tO\n2-3\tal\t_\n2\ta\tO\n3\til\tO\n4\tRoma\tB-LOC\n4.1\tx\t_\n", "vado a il Roma", [(3, 3, "location")]
    ),
    "GermEval's source line": (
        "#\thttp://de.wikipedia.org/wiki/X [2009]\n1\tIn\tO\tO\n2\tBonn\tO\tB-LOC\n", "In Bonn", [(1, 1, "location")]
    ),
    "MultiCoNER": (
        "# id 52-aa\tdomain=en\nthe _ _ O\nhobbit _ _ B-CreativeWork\n", "the hobbit", [(1, 1, "creative work")]
    ),
    "tags before words": ("B-Rating\tgood\nI-Rating\tfood\nO\there\n", "good food here", [(0, 1, "rating")]),
    "OntoNotes": (
        "#begin document (bc/x); part 000\n"
        "bc/x 0 0 Hong NNP (TOP* - - - S (GPE* * (0\n"
        "bc/x 0 1 Kong NNP * - - - S *) * 0)\n"
        "bc/x 0 2 thanked VBD * thank 01 1 S * (V*) -\n"
        "bc/x 0 3 Ann NNP *) - - - S (PERSON) * -\n#end document\n",
        "Hong Kong thanked Ann",
        [(0, 1, "geopolitical entity"), (3, 3, "person")],
    ),
    "numbers that are words": ("1 CD O\nMay NNP B-DATE\n2 CD I-DATE\n", "1 May 2", [(1, 2, "date")]),
    "a wide gap between columns": ("New   NNP\t B-LOC \nYork\tI-LOC\t \n", "New   NNP York", [(0, 1, "location")]),
    "several spaces": ("New    NNP  B-LOC  \n York NNP I-LOC\n", "New York", [(0, 1, "location")]),
    "IOB1": ("a I-x\nb I-x\nc B-x\nd O\ne I-y\n", "a b c d e", [(0, 1, "x"), (2, 2, "x"), (4, 4, "y")]),
    "LST20's underscore": ("a\tB_ORG\nb\tE_ORG\n", "a b", [(0, 1, "organization")]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words", "entities"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path: Path, text: str, words: str, entities: list[tuple[int, int, str]]) -> None:
    assert pairs(read(tmp_path, text)) == [(words, entities)]


def test_an_index_goes_on_or_begins_anew(tmp_path: Path) -> None:
    anew = "1\ta\tO\n2\tb\tO\n\n1\tc\tB-x\n"
    assert [words for words, _ in pairs(read(tmp_path, anew))] == ["a b", "c"]
    on = "0\ta\tO\n1\tb\tO\n\n2\tc\tB-x\n"
    assert [words for words, _ in pairs(read(tmp_path, on))] == ["a b", "c"]


def test_a_broken_row_does_not_change_the_layout(tmp_path: Path) -> None:
    """The layout is the file's: one bad tag must not make the chunk column the tags, nor a bad index the words."""
    good = "EU NNP B-NP B-ORG\nx VBZ B-VP O\n\n"
    with pytest.raises(ValueError, match=r"x\.conll:31: expected O or a type .*, in the last column, got 'ORG'"):
        read(tmp_path, good * 10 + "EU NNP B-NP ORG\n")
    indexed = "1\ta\tO\n2\tb\tB-x\n\n"
    with pytest.raises(ValueError, match=r"x\.conll:31: expected an index in column 1, got 'one c O'"):
        read(tmp_path, indexed * 10 + "one\tc\tO\n")
    skipped = load_dataset(tmp_path / "x.conll", skip_bad_rows=True)
    assert len(skipped) == 10 and skipped.skipped == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path: Path, end: str) -> None:
    lines = ["a\tO", "b\tB-x", "", "c\tO", " \t ", "-DOCSTART-\tO", "d\tO"]
    assert pairs(read(tmp_path, end.join(lines))) == [("a b", [(1, 1, "x")]), ("c", []), ("d", [])]


def test_words_that_look_like_comments(tmp_path: Path) -> None:
    text = "# text = vitamin B-x\n# SYM O O\n#hash T O B-x\n## T O O\nx NN O O\n"
    assert pairs(read(tmp_path, text)) == [("# #hash ## x", [(1, 1, "x")])]
    assert pairs(read(tmp_path, "#\tO\n#win\tB-x\n# a comment\n#\n#id = 3\n")) == [("# #win", [(1, 1, "x")])]
    with pytest.raises(ValueError, match=r"x\.conll:2: expected a word and its tag, got '#win'"):
        read(tmp_path, "a\tO\n#win\n")


def test_unicode_separators_are_part_of_words(tmp_path: Path) -> None:
    words = ["a\u2028b", "c\x0bd", "e\x0cf", "g\x85h", "i\x1cj", "k\u00a0l"]
    (example,) = read(tmp_path, "".join(f"{word}\tO\n" for word in words))
    assert example.words == words
    (example,) = read(tmp_path, "".join(f"{word} O\n" for word in words))
    assert example.words == words


def test_other_columns_of_tags_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path, "EU NNP B-NP B-ORG\nx VBZ O O\n")  # chunks are no entities
        assert not caplog.records
        assert pairs(read(tmp_path, "1\tBonner\tB-LOCderiv\tB-ORG\n2\tx\tO\tO\n"))[0][1] == [(0, 0, "organization")]
    assert "column 3 holds tags too (types LOCderiv)" in caplog.text


def chunks(tags: list[str]) -> list[tuple[int, int, str]]:
    """conlleval's two rules, with the prefixes of all schemes mapped to those of IOBES."""
    found, begin = [], 0
    previous, before = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, name = {"M": "I", "L": "E", "U": "S", "W": "S"}.get(tag[0], tag[0]), tag[2:]
        if previous != "O" and (previous in "ES" or prefix in "OBS" or name != before):
            found.append((begin, index - 1, before))
        if prefix != "O" and (prefix in "BS" or previous in "OES" or name != before):
            begin = index
        previous, before = prefix, name
    return found


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{name}" for prefix in "BIMELSUW" for name in "xy")])))
def test_every_scheme_is_read_as_conlleval_does(tags: list[str]) -> None:
    assert tagged_spans(tags) == chunks(tags)


@pytest.mark.parametrize("begin,inside,end,single", ["BIES", "BILU", "BMES", "BMEW", "BIIB", "IIEE"])  # noqa: PT006
@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["", "x", "y"]))))
def test_schemes_round_trip(begin: str, inside: str, end: str, single: str, spans: list[tuple[int, str]]) -> None:
    tags: list[str] = []
    entities = []
    for length, name in spans:
        if name:
            entities.append((len(tags), len(tags) + length - 1, name))
            prefixes = single if length == 1 else begin + inside * (length - 2) + end
            tags += [f"{prefix}-{name}" for prefix in prefixes]
        else:
            tags += ["O"] * length
    assert tagged_spans(tags) == entities
