"""Splitters of texts into words: by Unicode, and gliner's by their names."""

import itertools
import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glimodern.inputs import splitters
from glimodern.inputs.words import SPLITTERS, Word, word_splitter

# A module of each splitter's package: the tests of a splitter skip where one of its modules is not installed.
MODULES = {
    "whitespace": (),
    "unicode": ("regex",),
    "spacy": ("spacy",),
    "jieba": ("jieba3",),
    "janome": ("janome",),
    "mecab": ("mecab",),
    "camel": ("camel_tools",),
    "hindi": ("indicnlp",),
    "universal": ("langdetect", "mecab", "janome", "indicnlp", "jieba3", "camel_tools", "spacy"),
}
YIELD_SPACE = ("spacy", "jieba", "janome", "universal", "mecab", "hindi")  # white space as words, as in gliner

# Characters at which word boundaries are decided: letters of scripts with and without spaces, digits, marks, joiners,
# punctuation inside words and numbers, emoji and flags, spaces and controls.
CHARACTERS = (
    "aZéßŁж王々〆あきアーｱกำเ้ิลາ໊ខ្មែက္ကြ한글ᄒ\u1161אבש״ابनमिस् ক๑၂٣²½_ー"
    "019.,;:'’‘·・-–/\"()。、！？「」@#€$%*+=&|~^`"
    "\u0301\u0308\u200d\u200c\u200b\u200e\u00ad\ufeff\ufe0f\u20e3\u0600\u06dd"
    "😀👩👧❤🏽🇹🇭🇯© \n\r\t\v\x00\x1c\x85\u00a0\u202f\u2028\u3000"
)
TEXTS = st.text(st.sampled_from(CHARACTERS), max_size=24) | st.text(max_size=60)


def splitter(name):
    for module in MODULES[name]:
        pytest.importorskip(module, reason=f"needs the package of {module}, for the splitter {name!r}")
    return word_splitter(name)


def texts_of(words):
    return [word.text for word in words]


# --- by Unicode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" \n\u00a0\u202f\u3000\u200b", ""),
        ("Ada met Bob.", "Ada met Bob ."),
        ("Ada's e-mail: ada@example.com", "Ada ' s e - mail : ada @ example . com"),
        ("€3.5m, 5,000 and 1.1.2024, snake_case", "€ 3.5m , 5,000 and 1.1.2024 , snake_case"),
        ("王小明在北京大学。", "王 小 明 在 北 京 大 学 。"),
        ("佐々木さんはソニーへ", "佐 々 木 さ ん は ソ ニ ー へ"),
        ("iPhone15を２０２４年に", "iPhone15 を ２０２４ 年 に"),
        ("ไปกรุงเทพ น้ำ", "ไ ป ก รุ ง เ ท พ น้ำ"),  # a vowel sign or tone mark belongs to its consonant
        ("ພາສາລາວ", "ພ າ ສ າ ລ າ ວ"),
        ("ភាសាខ្មែរ\u200bល្អ", "ភា សា ខ្មែ រ ល្អ"),  # a zero-width space separates Khmer words
        ("မြန်မာ ၂၀၂၄", "မြ န် မာ ၂၀၂၄"),
        ("हिन्दी में", "हिन्दी में"),  # `whitespace` breaks such words at every vowel sign
        ("한국어 русский naïve na\u0131\u0308ve", "한국어 русский naïve na\u0131\u0308ve"),
        ("👨‍👩‍👧🇹🇭🇯🇵👍🏽 x\u0301", "👨‍👩‍👧 🇹🇭 🇯🇵 👍🏽 x\u0301"),
    ],
)
def test_unicode_words(text, words):
    assert texts_of(word_splitter("unicode")(text)) == words.split()


def test_latin_texts_are_split_as_all_others():
    """The faster pattern for Latin texts gives the same words: every character, in pairs and between letters."""
    split = word_splitter("unicode")
    latin = [chr(code) for code in range(0x3000) if not splitters._NOT_LATIN.search(chr(code))]
    assert len(latin) > 600
    around = "aé1_ .,;'’-\0"
    parts = [a + x + b for x in latin for a, b in itertools.product(around, around)]
    parts += [x + y for x, y in itertools.product(latin, latin)]
    text = "\n".join(parts)
    assert not splitters._NOT_LATIN.search(text)
    assert split(text) == split(text + "\n王")[:-1]


@settings(deadline=None, derandomize=True, max_examples=400)
@given(TEXTS)
@example("a\u0600王")
@example("カ_カー")
@example("צה״ל 'א")
def test_unicode_breaks_where_the_standard_does(text):
    """Every word boundary of Unicode is the edge of a word, unless it is inside a grapheme cluster (Thai and Khmer)."""
    regex = pytest.importorskip("regex")
    boundaries, clusters = ({match.start() for match in regex.finditer(p, text)} for p in (r"(?w)\b", r"\X"))
    inside = {place for word in word_splitter("unicode")(text) for place in range(word.start + 1, word.end)}
    assert not boundaries & clusters & inside


# --- all ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_words_are_in_order_and_are_the_text_at_their_offsets(name):
    split = splitter(name)

    @settings(deadline=None, derandomize=True, max_examples=80, suppress_health_check=list(HealthCheck))
    @given(TEXTS)
    def check(text):
        last = 0
        for word in split(text):
            assert last <= word.start < word.end
            assert text[word.start : word.end] == word.text
            assert name in YIELD_SPACE or not word.text.isspace()
            last = word.end
        if name in ("whitespace", "unicode"):  # the others leave out what their libraries do
            rest = re.sub(r"[\s\u200b]", "", text)
            assert "".join(texts_of(split(text))).replace("\u200b", "") == rest

    check()


@pytest.mark.parametrize("name", MODULES)
def test_anything_but_a_string_is_refused(name):
    with pytest.raises(TypeError, match="text: expected a str, got list"):
        splitter(name)(["a"])


def test_an_unknown_name():
    with pytest.raises(ValueError, match="^splitter: expected one of 'whitespace', 'unicode', .*, got 'words'; choose"):
        word_splitter("words", "splitter")


# --- gliner's ----------------------------------------------------------------------------------------------------

SAMPLES = [
    "She didn't fly to the U.K.  (state-of-the-art, €3.5m)\non 3/11/2019.",
    "王小明昨天在北京大学见到了Li教授，2024年 花了3.5万元。\n好",
    "昨日、佐々木さんはソニーの東京本社へ行った。 ABC 株式会社",
    "홍길동은 어제 서울대학교에서 김 교수를 만났다. 3.5만원",
    "ذهب محمد إلى القاهرة، أمس 2024. واشترى",
    "राम कल दिल्ली गया। 10.5 रुपये  (ABC), 1.2.2024",
    "นายสมชายเดินทางไปกรุงเทพมหานคร",
    "Der Präsident der Universität Göttingen eröffnete ein Café in Köln.",
    "123 :-) 😀",
    "",
    "   ",
]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "unicode"])
def test_words_are_gliners(name, monkeypatch):
    tokenizer = pytest.importorskip("gliner.data_processing.tokenizer", reason="needs the extra peers (gliner)")
    split = splitter(name)
    monkeypatch.setattr(tokenizer, "is_module_available", lambda module: True)  # it asks for jieba and uses jieba3
    theirs = tokenizer.WordsSplitter(name)
    for text in [*SAMPLES, " ".join(SAMPLES[:3])]:
        assert split(text) == [Word(*word) for word in theirs(text) if word[0]], text


def test_a_token_that_the_text_does_not_have():
    """It is left out, and the words after it keep their places; gliner's would drift."""
    split = splitters._located(lambda text: ["a", "B", "", "c"])
    assert split("a b a c") == [Word("a", 0, 1), Word("c", 6, 7)]


def module(monkeypatch, name, **members):
    made = types.ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def fresh():
    """No splitter of a stand-in stays for the next test."""
    splitters._built.cache_clear()
    yield
    splitters._built.cache_clear()


def langdetect(monkeypatch, languages):
    class LangDetectException(Exception):  # noqa: N818
        pass

    def detect(text):
        if not any(character.isalpha() for character in text):
            raise LangDetectException
        return next((name for start, name in languages.items() if text.startswith(start)), "xx")

    factory = types.SimpleNamespace(seed=None)
    return module(
        monkeypatch, "langdetect", DetectorFactory=factory, LangDetectException=LangDetectException, detect=detect
    )


def test_hanlp(monkeypatch, fresh):
    """A stand-in of the same interface: the library downloads its model."""
    models = types.SimpleNamespace(ALL={"FINE_ELECTRA_SMALL_ZH": "address"})
    pretrained = module(monkeypatch, "hanlp.pretrained", tok=models)
    tokens = {"address": lambda text: ["王小明", "在", "北京"]}
    module(monkeypatch, "hanlp", pretrained=pretrained, load=lambda url: tokens[url])
    assert word_splitter("hanlp")("王小明 在北京") == [Word("王小明", 0, 3), Word("在", 4, 5), Word("北京", 5, 7)]


def test_stanza(monkeypatch, fresh):
    """The pipeline of the text's language, downloaded if it is missing; else the English one, with a warning."""
    found = langdetect(monkeypatch, {"王": "zh-cn", "Je": "fr", "Sa": "tlh"})
    calls = []

    def tokens(*parts):
        return [
            types.SimpleNamespace(
                start_char=start,
                end_char=end,
                words=[types.SimpleNamespace(text=t, start_char=s, end_char=e) for t, s, e in words],
            )
            for start, end, *words in parts
        ]

    answers = {
        "zh": tokens((0, 3, ("王小明", 0, 3)), (3, 5, ("到了", 3, 5))),
        # a token of two words, which the text does not have: gliner has words without offsets there
        "fr": tokens((0, 2, ("Je", 0, 2)), (3, 5, ("de", None, None), ("le", None, None))),
        "en": tokens((0, 1, ("1", 0, 1))),
    }

    class Pipeline:
        def __init__(self, language, processors, verbose, **download):
            calls.append((language, *download))
            if language not in answers or (language == "zh" and ("download", "zh") not in calls):
                raise FileNotFoundError(language)
            self.language = language

        def __call__(self, text):
            sentences = [types.SimpleNamespace(tokens=answers[self.language])]
            return types.SimpleNamespace(sentences=sentences)

    def download(language, processors, verbose):
        calls.append(("download", language))

    module(monkeypatch, "stanza", Pipeline=Pipeline, download=download)
    split = word_splitter("stanza")
    assert split("王小明到了") == [Word("王小明", 0, 3), Word("到了", 3, 5)]
    assert calls == [("zh", "download_method"), ("download", "zh"), ("zh",)]
    assert found.DetectorFactory.seed == 42
    assert split("Je du") == [Word("Je", 0, 2), Word("du", 3, 5)]
    assert split("1") == [Word("1", 0, 1)]
    with pytest.warns(UserWarning, match="expected a model of Stanza for the language 'tlh', got none .*; the English"):
        assert texts_of(split("Sa")) == ["S"]
    del answers["en"]
    splitters._built.cache_clear()
    with pytest.warns(UserWarning, match="'tlh'"), pytest.raises(ValueError, match="Stanza for 'tlh' or English"):
        word_splitter("stanza")("Sa")


def test_universal(monkeypatch, fresh):
    """Each of its five languages by its own splitter, all others by spaCy's; chosen anew for each text."""
    pytest.importorskip("spacy", reason="needs the package spacy")
    found = langdetect(monkeypatch, {"王": "zh-cn", "あ": "ja", "한": "ko", "र": "hi", "ا": "ar", "t": "zh-tw"})
    for name in ("jieba", "janome", "mecab", "camel", "hindi"):
        monkeypatch.setitem(splitters._BUILDERS, name, lambda name=name: lambda text: [Word(name, 0, len(text))])
    split = word_splitter("universal")
    for text, name in {"王": "jieba", "t": "jieba", "あ": "janome", "한": "mecab", "र": "hindi", "ا": "camel"}.items():
        assert texts_of(split(text)) == [name]
    assert texts_of(split("Ada's 1.")) == ["Ada", "'s", "1", "."]
    assert texts_of(split("1 2")) == ["1", "2"]
    assert found.DetectorFactory.seed == 0


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("jieba", "jieba3", "expected the package jieba3 for 'jieba'.*; pip install jieba3$"),
        ("mecab", "mecab", "expected the package python-mecab-ko for 'mecab'.*; pip install python-mecab-ko$"),
        ("janome", "janome", "expected the package janome .*; pip install janome$"),
        ("camel", "camel_tools", "expected the package camel-tools .*; pip install camel-tools$"),
        ("hindi", "indicnlp", "expected the package indic-nlp-library .*; pip install indic-nlp-library$"),
        ("hanlp", "hanlp", "expected the package hanlp .*; pip install hanlp$"),
        ("spacy", "spacy", "expected the package spacy .*; pip install spacy$"),
        ("unicode", "regex", "expected the package regex .*; pip install regex$"),
        ("stanza", "stanza", "expected the packages stanza, langdetect .*; pip install stanza langdetect$"),
        ("universal", "langdetect", "expected the packages langdetect, .*; pip install langdetect python-mecab-ko"),
    ],
)
def test_a_missing_package(monkeypatch, fresh, name, missing, message):
    for loaded in [name for name in sys.modules if name.startswith(missing + ".")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match="^splitter: " + message):
        word_splitter(name, "splitter")


def test_extras_name_the_packages():
    """Each of gliner's names is an extra of the same packages."""
    toml = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert set(splitters.PACKAGES) == set(splitters._BUILDERS) == set(SPLITTERS) - {"whitespace"}
    for name, packages in splitters.PACKAGES.items():
        if name == "unicode":
            assert '"regex>=' in toml.split("[project.optional-dependencies]")[0]
            continue
        (listed,) = re.findall(rf"^{name} = \[(.*?)\]", toml, re.MULTILINE | re.DOTALL)
        assert set(re.findall(r'"([\w-]+)>=', listed)) == set(packages)
