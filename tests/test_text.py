"""split_words: the words and offsets of public GLiNER's splitter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimodern.inputs.words import Word, split_words, word_splitter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t\u00a0", []),
        ("Ada met Bob.", ["Ada", "met", "Bob", "."]),
        ("state-of-the-art, snake_case -x- a--b", "state-of-the-art , snake_case - x - a - - b".split()),
        ("it's €5,000 (naïve)", ["it", "'", "s", "€", "5", ",", "000", "(", "naïve", ")"]),
        ("東京は大きい。", ["東京は大きい", "。"]),
        ("a\u2028b 😀", ["a", "b", "😀"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [word.text for word in split_words(text)] == words


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_offsets_are_the_words_and_leave_only_white_space(text: str) -> None:
    words = split_words(text)
    rest = list(text)
    last = 0
    for word in words:
        assert text[word.start : word.end] == word.text != ""
        assert last <= word.start
        last = word.end
        rest[word.start : word.end] = " " * len(word.text)
    assert not "".join(rest).strip()


def test_a_huge_word_is_one_word() -> None:
    assert split_words("x" * 100_000) == [Word("x" * 100_000, 0, 100_000)]
    assert len(split_words("x-" * 50_000 + "x")) == 1


def test_anything_but_a_string_is_refused() -> None:
    with pytest.raises(TypeError, match="text: expected a str, got list"):
        split_words(["a"])  # type: ignore[arg-type]


def test_spacy_splitter_is_gliners():
    pytest.importorskip("spacy", reason="needs the package spacy")
    tokenizer = pytest.importorskip("gliner.data_processing.tokenizer", reason="needs the extra peers (gliner)")
    text = "She didn't fly to the U.K.  (state-of-the-art, €3.5m)\non 3/11/2019."
    assert word_splitter("spacy")(text) == [Word(*word) for word in tokenizer.WordsSplitter("spacy")(text)]
    assert word_splitter("spacy") is word_splitter("spacy")


def test_other_splitters():
    assert word_splitter("whitespace") is split_words
    with pytest.raises(ValueError, match="words_splitter_type: expected .*, got 'words'.*predict_words"):
        word_splitter("words")
