"""Splitters of a text into words beside `split_words`: by Unicode, and by the libraries of public GLiNER.

"unicode" knows no language. It breaks a text where Unicode's word boundaries are (https://unicode.org/reports/tr29/),
and in more places, so that every name has its ends at the edge of a word:

- Han, Hiragana, Katakana, Thai, Lao, Khmer and Myanmar characters are one word each, with their marks (a grapheme
  cluster), because no dictionary says where their words end. The standard keeps Katakana together.
- A full stop, colon or apostrophe inside a word is a word of its own ("it's", "example.com"), unless it stands between
  digits ("3.5"). The standard keeps such words together, and then "Ada" in "Ada's" cannot be found.
- White space and zero-width spaces belong to no word.

The other splitters give the words and offsets of gliner 0.2.29 (gliner/data_processing/tokenizer.py), white space
among them where its library yields it (spacy, jieba, janome; seldom mecab and hindi). Languages: "jieba" and "hanlp"
are for Chinese, "janome" for Japanese, "mecab" for Korean, "camel" for Arabic, "hindi" for Hindi; "spacy" is spaCy's
tokenizer for English. "universal" and "stanza" detect each text's language with langdetect. "universal" calls the
splitter of Korean, Japanese, Hindi, Chinese and Arabic, and spaCy's multi-language tokenizer for all others; "stanza"
calls Stanza's tokenizer of that language, and the English one if it has no model for it.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from glimodern.display import first_line

from .words import Word, WordSplitter, check_text

PACKAGES: dict[str, tuple[str, ...]] = {
    "unicode": ("regex",),
    "spacy": ("spacy",),
    "jieba": ("jieba3",),
    "hanlp": ("hanlp",),
    "janome": ("janome",),
    "mecab": ("python-mecab-ko",),
    "camel": ("camel-tools",),
    "hindi": ("indic-nlp-library",),
    "stanza": ("stanza", "langdetect"),
    "universal": ("langdetect", "python-mecab-ko", "janome", "indic-nlp-library", "jieba3", "camel-tools", "spacy"),
}
"""The packages of each splitter, by their names at PyPI."""


def load_splitter(name: str, setting: str) -> WordSplitter:
    """Return the splitter of a name in PACKAGES, built once. setting: where the name was given, for messages.

    Raises ValueError, with the command that installs it, if a package is missing.
    """
    try:
        return _built(name)
    except ImportError as error:
        packages = PACKAGES[name]
        wanted = f"the package{'s' if len(packages) > 1 else ''} {', '.join(packages)}"
        raise ValueError(
            f"{setting}: expected {wanted} for {name!r}, got an import that fails ({first_line(error)}); "
            f"pip install {' '.join(packages)}"
        ) from error


@functools.cache
def _built(name: str) -> WordSplitter:
    split = _BUILDERS[name]()

    def checked(text: str) -> list[Word]:
        check_text(text)
        return split(text)

    return checked


# --- by Unicode --------------------------------------------------------------------------------------------------

# Texts of Latin letters, which Python's faster `re` splits into the same words (tests/test_splitters.py compares them).
_LATIN = "\0-\xac\xae-\xb7\xb9-\u024f\u2010-\u2026\u2030\u20ac\u2122"
_LATIN_LETTER = "A-Za-z0-9_\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u024f"
_NOT_LATIN = re.compile(f"[^{_LATIN}]")
_LATIN_WORD = re.compile(rf"[{_LATIN_LETTER}]+(?:[.,;'\u2018\u2019\u2024](?<=[0-9].)(?=[0-9])[{_LATIN_LETTER}]+)*|\S")

_NUMERIC = r"\p{WB=Numeric}"
_LETTER = rf"\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}\p{{WB=ExtendNumLet}}{_NUMERIC}"
_MARK = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}"
_IN_NUMBER = r"\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}"
# Letters that the standard joins: a narrow no-break space, which is white space, and two iteration marks of Han.
_ALONE = r"\u202f\u3005\u303b"
_STACKER = r"\u17d2\u1039"  # the next consonant is written below; newer releases of Unicode join it in \X, too
_SPACE = r"\s\x1c-\x1f\u200b"
_UNICODE_WORD = rf"""
    [[{_LETTER}]--[{_ALONE}]] [[{_LETTER}{_MARK}]--[{_ALONE}]]*+
        (?: [{_IN_NUMBER}] (?<={_NUMERIC}.) (?={_NUMERIC}) [[{_LETTER}{_MARK}]--[{_ALONE}]]*+ )*+
    | [!-/:-@\[-`\{{-~] (?![{_MARK}])   # the next alternative, faster
    | (?![{_SPACE}]) \X [{_MARK}]*+ (?: (?<=[{_STACKER}]) (?=[\p{{Khmer}}\p{{Myanmar}}]) \X [{_MARK}]*+ )*+
"""


def _by_unicode() -> WordSplitter:
    import regex

    pattern = regex.compile(_UNICODE_WORD, regex.VERSION1 | regex.VERBOSE)

    def split(text: str) -> list[Word]:
        matches = pattern.finditer(text) if _NOT_LATIN.search(text) else _LATIN_WORD.finditer(text)
        return [Word(match.group(), match.start(), match.end()) for match in matches]

    return split


# --- by the libraries of gliner ----------------------------------------------------------------------------------


def _located(tokenize: Callable[[str], Iterable[str]]) -> WordSplitter:
    """Find a tokenizer's tokens in the text, each after the one before it.

    A token that the text does not have there is left out: the tokenizer wrote it differently. gliner gives it the
    offset -1, after which the offsets of the later tokens may be too small; its "hindi" leaves it out, too. An empty
    token, which "hindi" has for an empty text, is no word.
    """

    def split(text: str) -> list[Word]:
        words: list[Word] = []
        last = 0
        for token in tokenize(text):
            start = text.find(token, last) if token else -1
            if start >= 0:
                last = start + len(token)
                words.append(Word(token, start, last))
        return words

    return split


def _spacy(language: str = "en") -> WordSplitter:
    import spacy

    tokenize = spacy.blank(language)
    return lambda text: [Word(token.text, token.idx, token.idx + len(token.text)) for token in tokenize(text)]


def _jieba() -> WordSplitter:
    import jieba3

    return _located(jieba3.jieba3().cut_text)


def _hanlp() -> WordSplitter:
    import hanlp
    import hanlp.pretrained

    return _located(hanlp.load(hanlp.pretrained.tok.ALL["FINE_ELECTRA_SMALL_ZH"]))


def _janome() -> WordSplitter:
    from janome.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    return _located(lambda text: map(str, tokenizer.tokenize(text, wakati=True)))


def _mecab() -> WordSplitter:
    import mecab

    return _located(mecab.MeCab().morphs)


def _camel() -> WordSplitter:
    from camel_tools.tokenizers.word import simple_word_tokenize

    return _located(simple_word_tokenize)


def _hindi() -> WordSplitter:
    from indicnlp.tokenize import indic_tokenize

    return _located(functools.partial(indic_tokenize.trivial_tokenize, lang="hi"))


def _language_detector(seed: int) -> Callable[[str], str | None]:
    """Return a function from a text to its language; None for a text without letters. seed: of langdetect's samples."""
    from langdetect import DetectorFactory, LangDetectException, detect

    def language(text: str) -> str | None:
        DetectorFactory.seed = seed  # of the library's one factory, which another splitter may have set
        try:
            return str(detect(text))
        except LangDetectException:
            return None

    return language


def _universal() -> WordSplitter:
    language = _language_detector(0)
    chinese = _built("jieba")
    splitters = {
        "ko": _built("mecab"),
        "ja": _built("janome"),
        "hi": _built("hindi"),
        "zh-cn": chinese,
        "zh-tw": chinese,
        "zh": chinese,
        "ar": _built("camel"),
    }
    other = _spacy("xx")
    return lambda text: splitters.get(language(text) or "", other)(text)


def _stanza() -> WordSplitter:
    import stanza

    language = _language_detector(42)

    @functools.cache
    def pipeline(name: str) -> Any:
        """Load the pipeline of a language, and download its model if there is none; None: Stanza has no such model."""
        try:
            return stanza.Pipeline(name, processors="tokenize", verbose=False, download_method=None)
        except Exception:  # the kind depends on what is missing: folder, list of models, or model
            try:
                stanza.download(name, processors="tokenize", verbose=False)
                return stanza.Pipeline(name, processors="tokenize", verbose=False)
            except Exception as error:
                if name == "en":
                    return None
                warnings.warn(
                    f"words_splitter_type: expected a model of Stanza for the language {name!r}, got none "
                    f"({first_line(error)}); the English one splits its texts",
                    stacklevel=2,
                )
                return None

    def split(text: str) -> list[Word]:
        name = {"zh-cn": "zh", None: "en"}.get(found := language(text), found)
        tokenize = pipeline(name) or pipeline("en")
        if tokenize is None:
            raise ValueError(
                f"words_splitter_type: expected a model of Stanza for {name!r} or English, got neither; run "
                "stanza.download('en') on a machine with a network"
            )
        return [word for sentence in tokenize(text).sentences for word in _stanza_words(text, sentence)]

    return split


def _stanza_words(text: str, sentence: Any) -> Iterable[Word]:
    """Yield a sentence's words; a token whose words the text does not have ("du": "de", "le") is one word."""
    for token in sentence.tokens:
        words = [(word.start_char, word.end_char, word.text) for word in token.words]
        if any(start is None or text[start:end] != written for start, end, written in words):
            yield Word(text[token.start_char : token.end_char], token.start_char, token.end_char)
        else:
            yield from (Word(written, start, end) for start, end, written in words)


_BUILDERS: dict[str, Callable[[], WordSplitter]] = {
    "unicode": _by_unicode,
    "spacy": _spacy,
    "jieba": _jieba,
    "hanlp": _hanlp,
    "janome": _janome,
    "mecab": _mecab,
    "camel": _camel,
    "hindi": _hindi,
    "stanza": _stanza,
    "universal": _universal,
}
