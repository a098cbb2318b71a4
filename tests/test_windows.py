"""Windows of long texts, groups of labels, thresholds by label and by text, and the best entities of a text.

A long text's results equal those of a slow oracle: each window is scored alone, without a threshold; each span is taken
from the window with its widest context; one greedy search finds the entities.
"""

import itertools
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glimodern import GLiModern
from glimodern.inference.decode import greedy_decode, text_spans
from glimodern.inference.request import Request
from glimodern.inference.windows import (
    DEFAULT_CONTEXT,
    Reading,
    WindowSizes,
    overlap_of,
    owners,
    plan_sentences,
    plan_windows,
    sentence_starts,
)
from glimodern.inputs.labels import LabelSet
from glimodern.inputs.packer import Packer
from glimodern.inputs.words import split_words
from tests.bi_encoder_rows import encoder_config, save_encoder, spread_types
from tests.conftest import WORDS, clear_threshold, make_tiny_model

LABELS = ["person", "place", "machine"]
TEXT = " ".join(WORDS)
LONG = [WORDS[(n * n + n // 7) % len(WORDS)] for n in range(150)]  # words of a long text, in no regular order
EVERYTHING = {"threshold": 0.0, "flat": False, "multi_label": True}
MODES = list(itertools.product((True, False), repeat=2))

pytestmark = pytest.mark.filterwarnings("ignore:labels. .* were asked in")


# planning


def bounds_of(tokens):
    return np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)


TOKENS = st.lists(st.integers(0, 4) | st.sampled_from([0, 1, 30]), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=TOKENS,
    max_words=st.integers(1, 24),
    max_tokens=st.none() | st.integers(1, 40),
    share=st.floats(0, 1),
    sentences=st.sets(st.integers(0, 60)),
)
@example(tokens=[30, 0, 30, 1, 30], max_words=5, max_tokens=10, share=1.0, sentences=set())
@example(tokens=[0, 0, 0], max_words=2, max_tokens=1, share=1.0, sentences={1, 2})
def test_windows_cover_the_text_and_are_no_larger_than_asked(tokens, max_words, max_tokens, share, sentences):
    bounds, overlap = bounds_of(tokens), int(share * (max_words - 1))
    windows = plan_windows(bounds, WindowSizes(max_words, max_tokens, overlap), sentences.__contains__)
    starts, ends = zip(*windows, strict=True)
    assert starts[0] == 0 and ends[-1] == len(tokens)
    assert all(a < b for column in (starts, ends) for a, b in itertools.pairwise(column))
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    for start, end in windows:
        assert 0 < end - start <= max_words
        assert max_tokens is None or bounds[end] - bounds[start] <= max_tokens or end == start + 1
    if len(tokens) <= max_words and (max_tokens is None or bounds[-1] <= max_tokens):
        assert windows == [(0, len(tokens))]
    if overlap <= max_words // 2:
        assert sum(bounds[end] - bounds[start] for start, end in windows) <= 3 * bounds[-1]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=TOKENS,
    max_width=st.integers(1, 6),
    context=st.integers(0, 5),
    more_words=st.integers(0, 9),
    more_tokens=st.none() | st.integers(0, 9),
    sentences=st.sets(st.integers(0, 60)),
)
def test_every_span_has_its_context_in_the_window_that_owns_it(
    tokens, max_width, context, more_words, more_tokens, sentences
):
    """If as many words as windows share never take more than half of a window's tokens."""
    bounds, words = bounds_of(tokens), len(tokens)
    needed = max_width + 2 * context
    densest = max(sum(tokens[i : i + needed]) for i in range(words))
    max_tokens = None if more_tokens is None else 2 * densest + more_tokens + 1
    sizes = WindowSizes(needed + more_words, max_tokens, overlap_of(needed + more_words, max_width, context))
    windows = plan_windows(bounds, sizes, sentences.__contains__)
    spans = [(first, last) for first in range(words) for last in range(first, min(first + max_width, words))]
    owner = owners(*np.array(spans).T, windows)
    for (first, last), window in zip(spans, owner.tolist(), strict=True):
        start, end = windows[window]
        assert start <= first and last < end
        assert start == 0 or first - start >= context
        assert end == words or end - 1 - last >= context


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    starts=st.sets(st.integers(1, 40), max_size=8),
    lengths=st.lists(st.integers(1, 15), min_size=9, max_size=9),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=40),
)
def test_the_owner_has_the_widest_narrower_context_the_first_of_equals(starts, lengths, spans):
    """Of any windows, also of some that overlap twice or leave a gap. A text's ends are context without limit."""
    windows, end = [], 0
    for start, length in zip(sorted({0, *starts}), lengths, strict=False):
        end = max(end + 1, start + length)
        windows.append((start, end))
    wanted = []
    for first, width in spans:
        contexts = [
            min(
                first - start if number else 10**9,
                end - 1 - first - width if number < len(windows) - 1 else 10**9,
            )
            if start <= first and first + width < end
            else -1
            for number, (start, end) in enumerate(windows)
        ]
        wanted.append(contexts.index(max(contexts)) if max(contexts) >= 0 else -1)
    columns = np.array(spans, dtype=np.int64).reshape(-1, 2)
    assert owners(columns[:, 0], columns.sum(1), windows).tolist() == wanted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=TOKENS, max_words=st.integers(8, 30), sentences=st.sets(st.integers(1, 60), max_size=12))
def test_a_window_starts_at_a_sentence_only_if_one_is_near(tokens, max_words, sentences):
    bounds, sizes = bounds_of(tokens), WindowSizes(max_words, 20, max_words // 3)
    windows = plan_windows(bounds, sizes, sentences.__contains__)
    for (start, end), (following, _) in itertools.pairwise(windows):
        plain = start + plan_windows(bounds[start:] - bounds[start], sizes)[1][0]  # without sentences
        assert following == plain or following in sentences
        assert plain - 1 - (end - start) // 8 < following <= plain


def test_a_sentence_that_is_near_starts_a_window():
    sizes = WindowSizes(16, None, 4)
    plan = lambda *sentences: plan_windows(np.arange(41), sizes, sentences.__contains__)  # noqa: E731
    assert plan() == [(0, 16), (12, 28), (24, 40)]
    assert plan(12, 24) == plan(13, 9, 22 + 3) == plan()
    assert plan(11)[1] == (11, 27) and plan(10)[1] == (10, 26)
    assert plan(9)[1] == (12, 28)  # too far
    assert plan(10, 11)[1] == (11, 27)  # the last one
    dense = bounds_of([1] * 10 + [9, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    sizes = WindowSizes(1000, 10, 4)
    assert plan_windows(dense, sizes, {1}.__contains__) == plan_windows(dense, sizes)  # near in words, of 10 read


def test_sentences_are_read_alone():
    starts = {0, 3, 4, 14}.__contains__
    sizes = WindowSizes(6, None, 2)
    assert plan_sentences(np.arange(17), sizes, starts) == [(0, 3), (3, 4), (4, 10), (8, 14), (14, 16)]
    assert plan_sentences(np.arange(2), sizes, starts) == [(0, 1)]


def starts_in(text, splitter=split_words):
    """The words that start a sentence, of a text, with and without offsets."""
    offsets = splitter(text)
    words = [word.text for word in offsets]
    with_text, without = sentence_starts(words, text, offsets), sentence_starts(words)
    return [[words[n] for n in range(len(words)) if starts(n)] for starts in (with_text, without)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Ada met Charles. They wrote. Both", ["Ada", "They", "Both"]),
        ("Is it? Yes! No… 3 men", ["Is", "Yes", "No", "3"]),
        ("He came. she left", ["He"]),
        ("Dr. Ada B. Lovelace met Mr. Smith Jr. Then", ["Dr"]),
        ("He left (at last.) Then he “slept.” Ada", ["He", "Then", "Ada"]),
        ("He said. “Go.” ¿Qué? «Oui.» Non", ["He", "“", "¿", "«", "Non"]),
        ("He paused ... Then !? Ada", ["He", "Then", "Ada"]),
        ("她 来 了 。 他 走 了 ！ 好 ？ 是", ["她", "他", "好", "是"]),
        ("她来了。他走了！「好。」是", ["她来了", "他走了", "「", "是"]),
        ("جاء أحمد؟ ذهب۔ عاد", ["جاء", "ذهب", "عاد"]),
        ("वह आया। वह गया॥ अब", ["वह", "वह", "अब"]),
        ("a . - b . ) C", ["a", "C"]),
    ],
)
def test_where_sentences_start(text, wanted):
    assert starts_in(text) == [wanted, wanted]


def test_where_sentences_start_by_offsets_alone():
    """Line breaks, straight quotes, which open or close, and full stops without a space after them."""
    assert starts_in("Names\nada lovelace\r\n- place\u2028here")[0] == ["Names", "ada", "-", "here"]
    assert starts_in('He wrote. "Go." Then "Ada" left. \'Go.\' Ada')[0] == ["He", '"', "Then", "'", "Ada"]
    assert starts_in("About 3.5 of Node.Js and 1.0. Ada")[0] == ["About", "Ada"]
    assert starts_in('He wrote. " Go')[1] == ["He", "Go"]  # without offsets a straight quote closes
    assert starts_in('Ada left."Then')[0] == ["Ada", "Then"]
    assert starts_in("")[0] == []
    assert [sentence_starts(["", ".", "", "A"])(n) for n in range(4)] == [True, False, False, False]


def test_a_row_of_quotes_and_brackets_takes_linear_time():
    """Behind a full stop a few of them close; further ones are not looked through, however many there are."""

    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    for mark in '")»':
        words = Counted([".", *mark * 4000, "Ada"])
        Counted.reads = 0
        starts = sentence_starts(words)
        assert not any(starts(n) for n in range(1, len(words)))
        assert Counted.reads < 40 * len(words)
    assert sentence_starts([".", *'")»', "Ada"])(4)


# models


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """Checkpoints by kind; of the bi-encoder, labels of a BERT encoder."""
    folder = tmp_path_factory.mktemp("windows")
    tiny_model.save_pretrained(folder / "modernbert")
    tokenizer = tiny_model.tokenizer
    make = lambda kind, **head: GLiModern.from_encoder_config(  # noqa: E731
        encoder_config(kind, 32, len(tokenizer)), tokenizer, dropout=0.0, max_width=6, max_len=70, **head
    ).eval()
    torch.manual_seed(1)
    make("bert").save_pretrained(folder / "bert")
    save_encoder(folder / "labels", "bert", 48, 330)
    torch.manual_seed(2)
    bi = make("modernbert", labels_encoder=str(folder / "labels"))
    spread_types(bi.head.prompt)
    bi.save_pretrained(folder / "bi")
    return folder


KINDS = ["plain", "modernbert fp32", "modernbert bf16", "bert fp32", "bi fp32", "bi bf16"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tiny_model, folder):
    if request.param == "plain":
        return tiny_model
    kind, dtype = request.param.split()
    return GLiModern.from_pretrained(folder / kind, dtype=dtype)


@pytest.fixture(scope="module")
def bi(folder):
    return GLiModern.from_pretrained(folder / "bi", dtype="fp32")


@pytest.fixture(scope="module")
def one_word_model():
    """A model of single words: no two of its spans cross, so that a search for everything drops nothing."""
    return make_tiny_model(dropout=0.0, max_width=1)


@pytest.fixture(scope="module")
def spread_model():
    """A model whose types are unlike, so that few scores tie."""
    model = make_tiny_model(dropout=0.0, max_width=6)
    spread_types(model.head.prompt)
    return model


@pytest.fixture(scope="module")
def threshold(model):
    return clear_threshold(model, [" ".join(LONG[:40])], LABELS)


def windows_of(model, words, labels=LABELS, **reading):
    """A text's windows as planned."""
    (text,) = model.packer.tokenize([words], max_words=len(words))
    budget = model.packer.text_budget(model.packer.prompt(labels))
    request = Request(words, LabelSet(tuple(labels), tuple(labels)))
    return Reading.checked(model.packer, model.config.max_types, **reading).windows(
        request, text, model.packer, budget, 0
    )[0]


def candidates(model, words, labels):
    """All spans of words that fit the encoder: (first word, last word, type, score), in order."""
    batch = model.packer.pack([words], [labels])
    assert batch.words_cut == (0,)
    found = text_spans(model._candidates(batch, 0.0), batch.cu_words, batch.cu_types)
    columns = (found.start, found.end, found.type_id, found.score)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def searched(spans, labels, flat, multi_label):
    """The entities among spans in order."""
    if not spans:
        return []
    kept = greedy_decode(*zip(*spans, strict=True), flat=flat, multi_label=multi_label)
    return [(start, last, labels[type_id], score) for start, last, type_id, score in (spans[n] for n in kept)]


def owned(model, words, labels, windows, first_type=0):
    """All spans of a text, each with its score in the window where its narrower context is widest."""
    spans = {}
    for number, (first, end) in enumerate(windows):
        for start, last, type_id, score in candidates(model, words[first:end], labels):
            left = start if number else len(words)
            right = end - first - 1 - last if number < len(windows) - 1 else len(words)
            key = (first + start, first + last, first_type + type_id)
            if key not in spans or min(left, right) > spans[key][0]:
                spans[key] = min(left, right), score
    return [(*key, score) for key, (_, score) in sorted(spans.items())]


def oracle(model, words, labels, threshold, windows, flat=True, multi_label=False):
    """Entities by the scores of each window alone."""
    limits = threshold if isinstance(threshold, dict) else dict.fromkeys(labels, threshold)
    spans = [span for span in owned(model, words, labels, windows) if span[3] > limits[labels[span[2]]]]
    return searched(spans, labels, flat, multi_label)


def close(found, wanted):
    """Equal entities, and scores to the rounding of another batch."""
    tolerance = 1e-5
    assert [entity[:3] for entity in found] == [tuple(entity[:3]) for entity in wanted]
    assert [entity[3] for entity in found] == pytest.approx([entity[3] for entity in wanted], abs=tolerance)


@pytest.mark.parametrize(("flat", "multi_label"), MODES)
def test_a_long_text_is_searched_as_one(model, threshold, flat, multi_label):
    (found,) = model.predict_words([LONG], LABELS, threshold=threshold, flat=flat, multi_label=multi_label)
    windows = windows_of(model, LONG)
    assert found.windows == len(windows) > 2 and found.words_cut == 0
    close(found.entities, oracle(model, LONG, LABELS, threshold, windows, flat, multi_label))
    assert any(last > windows[-2][1] for _, last, _, _ in found.entities)
    for one, other in itertools.combinations(found.entities, 2):
        same, apart = one[:2] == other[:2], other[0] > one[1] or one[0] > other[1]
        inside = (one[0] <= other[0] and other[1] <= one[1]) or (other[0] <= one[0] and one[1] <= other[1])
        assert one[:3] != other[:3]
        assert (multi_label and same) or apart or (not flat and inside and not same)


def test_every_span_counts_once(one_word_model):
    (found,) = one_word_model.predict_words([LONG], LABELS, **EVERYTHING)
    spans = [(start, last, label) for start, last, label, _ in found.entities]
    assert sorted(spans) == sorted((i, i, label) for i in range(150) for label in LABELS) and found.windows > 1


@pytest.mark.parametrize("options", [{"window": 20, "context": 3}, {"window": 31}, {"context": 0}, {"window": 6}])
def test_windows_of_a_given_size(tiny_model, options):
    windows = windows_of(tiny_model, LONG, **options)
    assert max(end - start for start, end in windows) <= options.get("window", 128)
    threshold = clear_threshold(tiny_model, [TEXT], LABELS)
    (found,) = tiny_model.predict_words([LONG], LABELS, threshold=threshold, **options)
    assert found.windows == len(windows)
    close(found.entities, oracle(tiny_model, LONG, LABELS, threshold, windows))


def test_by_default_windows_share_less_than_half_of_their_words(tiny_model):
    for window in (12, 13, 20, 64, 128):
        windows = windows_of(tiny_model, [""] * 500, window=window)
        assert windows[0] == (0, window)
        assert all(2 * (start - before) >= window for (before, _), (start, _) in itertools.pairwise(windows))
    assert DEFAULT_CONTEXT == 32
    packer = make_tiny_model(max_width=6, max_len=2000).packer
    packer.max_tokens = None
    (text,) = packer.tokenize([["Ada"] * 5000], max_words=5000)
    windows, _ = Reading().windows(Request(["Ada"] * 5000, LabelSet((), ())), text, packer, None, 0)
    assert windows[:2] == [(0, 2000), (2000 - 69, 4000 - 69)]


def test_a_text_that_fits_is_read_as_without_windows(model, threshold):
    """Bit for bit, in a batch of its own and beside others."""
    for texts in ([WORDS], [WORDS, [], WORDS[:3], WORDS + WORDS]):
        for options in ({"threshold": threshold}, EVERYTHING):
            found = model.predict_words(texts, LABELS, **options)
            cut = model.predict_words(texts, LABELS, **options, long_texts="cut")
            assert found == cut == model.predict_words(texts, LABELS, **options, long_texts="error")
            assert [result.windows for result in found] == [int(bool(words)) for words in texts]
            assert any(result.entities for result in found)
    assert [result.windows for result in model.predict([TEXT, ""], LABELS)] == [1, 0]
    assert [result.windows for result in model.predict([TEXT, ""], [])] == [0, 0]


def test_results_of_long_texts_do_not_depend_on_the_batch(model, threshold):
    texts = [WORDS, LONG, [], LONG[:90], ["London"], LONG[::-1]]
    wanted = [model.predict_words([words], LABELS, threshold=threshold)[0] for words in texts]
    assert [result.windows > 1 for result in wanted] == [False, True, False, True, False, True]
    packed = model.packed_dtype is not None and model.label_encoder is None
    for batch_tokens in (1, 150, 400, "auto"):
        for given_texts in (texts, iter(texts)):
            found = model.predict_words(given_texts, LABELS, threshold=threshold, batch_tokens=batch_tokens)
            for result, alone in zip(found, wanted, strict=True):
                close(result.entities, alone.entities)
                assert result[1:] == alone[1:]
                assert not packed or result == alone


@pytest.mark.parametrize("texts", [[LONG * 20], [LONG * 20, WORDS]])
def test_few_batches_of_a_long_text_are_packed_ahead(tiny_model, monkeypatch, texts):
    """Memory of packed batches does not grow with a text's length, nor with its labels."""
    wanted = tiny_model.predict_words(texts, LABELS, batch_tokens=64, labels_per_prompt=1)
    alive, most = weakref.WeakValueDictionary(), 0
    pack = Packer.pack_tokens

    def counted(*given, **options):
        nonlocal most
        packed = pack(*given, **options)
        alive[id(packed)] = packed
        most = max(most, len(alive))
        return packed

    monkeypatch.setattr(Packer, "pack_tokens", counted)
    assert tiny_model.predict_words(texts, LABELS, batch_tokens=64, labels_per_prompt=1) == wanted
    assert most < 80 < wanted[0].windows


def test_a_long_text_within_a_stream(tiny_model):
    """Offsets are those of its own text; texts after it keep their order."""
    text = "  ".join(LONG)
    threshold = clear_threshold(tiny_model, [TEXT], LABELS)
    texts = [TEXT, "", text, "London", TEXT] * 8
    wanted = {each: tiny_model.predict(each, LABELS, threshold)[0] for each in set(texts)}
    found = list(tiny_model.predict(iter(texts), LABELS, threshold, batch_tokens=200))
    assert len(found) == 40 and wanted[text].windows > 1
    for each, result in zip(texts, found, strict=True):
        assert all(each[e["start"] : e["end"]] == e["text"] for e in result)
        assert [(e["start"], e["end"], e["label"]) for e in result] == [
            (e["start"], e["end"], e["label"]) for e in wanted[each]
        ]
        assert (result.windows, result.words_cut) == (wanted[each].windows, 0)
    (words,) = tiny_model.predict_words([LONG], LABELS, threshold=threshold)
    assert [e["label"] for e in wanted[text]] == [label for _, _, label, _ in words.entities]


def test_words_without_tokens(model, threshold):
    """At the start and end of windows, and as whole windows."""
    words = [word for pair in zip(LONG, itertools.cycle(["", "London", ""]), strict=False) for word in pair]
    words = [""] * 80 + words + [""] * 80
    (tokens,) = model.packer.tokenize([words], max_words=len(words))
    assert (tokens.starts < 0).sum() > 200
    (found,) = model.predict_words([words], LABELS, threshold=threshold)
    windows = windows_of(model, words)
    assert found.windows == len(windows) > 2
    close(found.entities, oracle(model, words, LABELS, threshold, windows))
    (nothing,) = model.predict_words([[""] * 300], LABELS, threshold=0.99)
    assert nothing.entities == [] and nothing.windows > 1


def test_a_word_with_more_tokens_than_a_window(tiny_model):
    huge = "x9" * 400
    words = [*LONG[:60], huge, *LONG[60:120], huge, huge]
    windows = windows_of(tiny_model, words)
    assert [(60, 61), (121, 122), (122, 123)] == [window for window in windows if window[1] - window[0] == 1]
    with pytest.warns(UserWarning, match="3 words alone have more tokens than the encoder takes"):
        (found,) = tiny_model.predict_words([words], LABELS, **EVERYTHING)
    assert (found.windows, found.words_cut, found.words_shortened) == (len(windows), 0, 3)
    spans = {(start, last) for start, last, _, _ in found.entities}
    assert {(59, 59), (60, 60), (61, 61), (122, 122)} <= spans and (59, 60) not in spans


def test_given_spans_that_no_window_holds_are_said(tiny_model):
    text = "Ada met Charles . London wrote about Taylor ."
    crossing, inside = (text.index("Charles"), text.index(" wrote")), (0, 3)
    with pytest.warns(UserWarning, match="^spans: 1 spans lie whole in no window, .* not scored") as said:
        (found,) = tiny_model.predict(text, LABELS, 0.0, spans=[inside, crossing], window="sentence")
    assert [(entity["start"], entity["end"]) for entity in found] == [inside] and len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = tiny_model.predict(text, LABELS, 0.0, spans=[inside, crossing])
    assert [(entity["start"], entity["end"]) for entity in found] == [inside, crossing]


def test_a_long_text_may_be_cut_or_refused(tiny_model):
    texts = [TEXT, TEXT, " ".join(LONG), TEXT]
    with pytest.warns(UserWarning, match='1 of 4 texts are longer .* Pass long_texts="windows"'):
        found = tiny_model.predict(texts, LABELS, long_texts="cut")
    assert [(result.windows, result.truncated) for result in found] == [(1, False), (1, False), (1, True), (1, False)]
    message = (
        r"texts\[42\]: expected at most 128 words and \d+ tokens beside its labels, got 150 words and \d+ tokens; "
    )
    results = []
    with pytest.raises(ValueError, match=message + 'split it, or pass long_texts="windows"$'):
        for result in tiny_model.predict(
            iter([*texts[:2] * 21, *texts[2:]]), LABELS, long_texts="error", batch_tokens=64
        ):
            results.append(result)
    assert results == [*tiny_model.predict(texts[:2] * 21, LABELS, batch_tokens=64)]
    with pytest.raises(ValueError, match=r"texts\[1\]: expected at most 12 words .*, got 18 words"):
        tiny_model.predict_words([WORDS[:12], WORDS], LABELS, long_texts="error", window=12)


def test_a_text_that_fits_by_words_alone_or_by_tokens_alone(tiny_model):
    """Both limits count, and the last word that fits is read."""
    budget = tiny_model.packer.text_budget(tiny_model.packer.prompt(LABELS))
    one = next(word for word in WORDS if len(tiny_model.packer.tokenize([[word]])[0].ids) == 2)
    for words, windows in (
        ([one] * (budget // 2), 1), ([one] * (budget // 2 + 1), 2), ([""] * 128, 1), ([""] * 129, 2),
    ):  # fmt: skip
        (found,) = tiny_model.predict_words([words], LABELS, threshold=0.9)
        assert found.windows == windows
        if windows > 1:
            with pytest.raises(ValueError, match=r"texts\[0\]: expected at most 128 words"):
                tiny_model.predict_words([words], LABELS, long_texts="error")


def test_sentences(tiny_model):
    """Each is read alone, in windows if it is too long; in a text that fits too."""
    text = "Ada met Charles. He wrote to Taylor.\nAda Lovelace met Charles"
    threshold = clear_threshold(tiny_model, [TEXT], LABELS)
    (found,) = tiny_model.predict(text, LABELS, threshold, window="sentence")
    assert found.windows == 3
    wanted, first = [], 0
    for sentence in ("Ada met Charles.", "He wrote to Taylor.", "Ada Lovelace met Charles"):
        first = text.index(sentence, first)
        (part,) = tiny_model.predict(sentence, LABELS, threshold)
        wanted += [(e["start"] + first, e["end"] + first, e["label"], e["score"]) for e in part]
    close([(e["start"], e["end"], e["label"], e["score"]) for e in found], wanted)
    long = ["Ada", ".", *["Charles"] * 200]
    windows = windows_of(tiny_model, long, window="sentence")
    assert tiny_model.predict_words([long], LABELS, window="sentence")[0].windows == len(windows) > 2
    assert windows[:2] == [(0, 2), (2, windows[1][1])]
    (short,) = tiny_model.predict_words([long[:9]], LABELS, window="sentence", long_texts="error")
    assert short.windows == 2
    with pytest.raises(ValueError, match=r"texts\[0\]: expected at most 128 words"):
        tiny_model.predict_words([long], LABELS, window="sentence", long_texts="error")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"long_texts": "window"}, ValueError, "long_texts: expected one of windows, cut, error, got 'window'"),
        ({"long_texts": None}, ValueError, "long_texts: expected one of windows, cut, error, got None"),
        (lambda: {"long_texts": np.array(["cut", "error"])}, ValueError, "long_texts: expected one of .*, got array"),
        ({"window": 0}, ValueError, 'window: expected a number of words or "sentence" of at least 1, got 0'),
        ({"window": "12"}, TypeError, "window: expected a number of words or \"sentence\", got str '12'"),
        (lambda: {"window": np.array([20, 30])}, TypeError, "window: expected a number of words .*, got ndarray"),
        ({"window": 1.5}, TypeError, 'window: expected a number of words or "sentence", got float 1.5'),
        ({"window": True}, TypeError, 'window: expected a number of words or "sentence", got bool True'),
        ({"window": 5}, ValueError, r"window: expected at least 6 words, max_width 6 \+ 2 x context 0, got 5; give"),
        ({"window": 9, "context": 2}, ValueError, r"window: expected at least 10 words, .* context 2, got 9; give"),
        ({"context": -1}, ValueError, "context: expected a number of words of at least 0, got -1"),
        ({"context": "3"}, TypeError, "context: expected a number of words, got str '3'"),
        ({"context": 62}, ValueError, "context: expected windows of 130 words, .* to fit max_len 128; give a smaller"),
        ({"window": 20, "long_texts": "cut"}, ValueError, 'window: expected None with long_texts="cut".*, got 20'),
        ({"context": 0, "long_texts": "cut"}, ValueError, 'context: expected None with long_texts="cut".*, got 0'),
        ({"context": 3, "long_texts": "error"}, ValueError, 'context: expected None with long_texts="error".*, got 3'),
        ({"labels_per_prompt": 0}, ValueError, "labels_per_prompt: expected a number of labels of at least 1, got 0"),
        ({"labels_per_prompt": 2.0}, TypeError, "labels_per_prompt: expected a number of labels, got float 2.0"),
        ({"top_k": 0}, ValueError, "top_k: expected a number of entities of at least 1, got 0"),
        ({"top_k": "all"}, TypeError, "top_k: expected a number of entities, got str 'all'"),
        (lambda: {"scores": np.array(["all", "all"])}, ValueError, "scores: expected 'found' or 'all', got array"),
        ({"windows": 3}, TypeError, "predict.*: unexpected keyword argument 'windows'.*window"),
    ],
)
def test_bad_options(tiny_model, options, error, message):
    options = options() if callable(options) else options
    for texts in ([TEXT], iter([TEXT])):  # at once, of a stream too
        with pytest.raises(error, match=message) as said:
            tiny_model.predict(texts, LABELS, **options)
        assert "\n" not in str(said.value)
    if "scores" not in options:
        with pytest.raises(error, match=message):
            tiny_model.predict_words(iter([WORDS]), LABELS, **options)


def test_numpy_options(tiny_model):
    options = {"window": np.int64(20), "context": np.array(3), "labels_per_prompt": np.int32(2), "top_k": np.int64(4)}
    plain = {name: int(value) for name, value in options.items()}
    words = [LONG]
    assert tiny_model.predict_words(words, LABELS, **options) == tiny_model.predict_words(words, LABELS, **plain)


# groups of labels

MANY = [*LABELS, *map(" ".join, itertools.product(WORDS[:8], WORDS[8:13]))]


def sizes_of(groups):
    return [len(group.labels) for group in groups]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=40), most=st.none() | st.integers(1, 12))
def test_groups_of_labels(tiny_model, lengths, most):
    """In order, each at most as many labels as asked and half of the tokens, or one label; even, if they fit so."""
    packer = tiny_model.packer
    labels = tuple(f"{i} " + "x9" * (length // 2) for i, length in enumerate(lengths))
    groups = packer.label_groups(labels, most)
    assert tuple(label for group in groups for label in group.labels) == labels
    assert [group.first for group in groups] == [0, *np.cumsum(sizes_of(groups))[:-1].tolist()]
    sizes = sizes_of(groups)
    assert max(sizes) <= (most or len(labels))
    for group in groups:
        assert np.array_equal(group.prompt.ids, packer.prompt(group.labels).ids)
        assert len(group.prompt.ids) <= 64 or len(group.labels) == 1
    tokens = packer.label_lengths(labels)
    if max(sizes) - min(sizes) > 1:  # then a group of an even size would be too large
        even = np.linspace(0, len(labels), len(sizes) + 1).astype(int)
        assert any(tokens[a:b].sum() > 63 and b - a > 1 for a, b in itertools.pairwise(even))


def test_sizes_of_groups(tiny_model):
    groups = tiny_model.packer.label_groups
    assert sizes_of(groups(tuple(MANY[:10]), 4)) == [3, 3, 4]
    assert sizes_of(groups(tuple(MANY[:10]), 1)) == [1] * 10
    assert sizes_of(groups(tuple(MANY[:5]), 5)) == sizes_of(groups(tuple(MANY[:5]), 99)) == [5]
    assert len(sizes_of(groups(tuple(MANY), 99))) == len(sizes_of(groups(tuple(MANY)))) > 3
    assert groups(tuple(MANY)) is groups(tuple(MANY))
    by_length = {
        len(tiny_model.packer.prompt((label, "person")).ids): label for label in map("z".__mul__, range(1, 90))
    }
    assert [sizes_of(groups((by_length[tokens], "person"))) for tokens in (64, 65)] == [[2], [1, 1]]
    wide = "z9" * 40
    assert len(tiny_model.packer.prompt([wide]).ids) > 64
    assert sizes_of(groups(("person", "place", wide, "machine"))) in ([1, 1, 1, 1], [2, 1, 1])


@pytest.mark.parametrize("per_prompt", [None, 1, 7])
@pytest.mark.parametrize(("flat", "multi_label"), MODES)
def test_groups_compete_in_one_search(spread_model, per_prompt, flat, multi_label):
    """In a text of one window and in one of several, which all groups share."""
    tiny_model = spread_model
    options = {"flat": flat, "multi_label": multi_label, "labels_per_prompt": per_prompt}
    threshold = clear_threshold(tiny_model, [TEXT], LABELS)
    groups = tiny_model.packer.label_groups(tuple(MANY), per_prompt)
    for words in (WORDS, LONG[:70]):
        (found,) = tiny_model.predict_words([words], MANY, threshold=threshold, **options)
        assert found.label_groups == len(groups) > 1
        longest = max((group.labels for group in groups), key=lambda labels: len(tiny_model.packer.prompt(labels).ids))
        windows = windows_of(tiny_model, words, longest)
        assert found.windows == len(windows)
        spans = []
        for group in groups:
            spans += owned(tiny_model, words, group.labels, windows, group.first)
        spans = sorted(span for span in spans if span[3] > threshold)
        close(sorted(found.entities), sorted(searched(spans, MANY, flat, multi_label)))
        assert found.entities == sorted(found.entities, key=lambda entity: (entity[0], -entity[3]))


def test_groups_asked_one_by_one_and_together(one_word_model):
    tiny_model = one_word_model
    threshold = clear_threshold(tiny_model, [TEXT], LABELS)
    options = {"threshold": threshold, "flat": False, "multi_label": True}
    (found,) = tiny_model.predict_words([WORDS], MANY, labels_per_prompt=5, **options)
    apart = []
    for group in tiny_model.packer.label_groups(tuple(MANY), 5):
        (part,) = tiny_model.predict_words([WORDS], list(group.labels), **options)
        assert part.label_groups == 1
        apart += part.entities
    key = lambda entity: (*entity[:2], MANY.index(entity[2]))  # noqa: E731
    close(sorted(found.entities, key=key), sorted(apart, key=key))


def test_labels_in_groups_are_answered_by_name(tiny_model):
    """Descriptions, duplicates, and label sets of each text, grouped or not."""
    described = {f"N{i}": label for i, label in enumerate(MANY)}
    (wanted,) = tiny_model.predict_words([WORDS], MANY, threshold=0.3)
    (found,) = tiny_model.predict_words([WORDS], described, threshold=0.3)
    assert [described[label] for *_, label, _ in found.entities] == [label for *_, label, _ in wanted.entities]
    assert wanted.entities and wanted.label_groups > 1
    assert tiny_model.predict_words([WORDS], [*MANY, *MANY[::-1]], threshold=0.3) == [wanted]
    each = tiny_model.predict_words([WORDS, WORDS, WORDS, WORDS], [LABELS, MANY, [], described], threshold=0.3)
    assert [result.label_groups for result in each] == [1, wanted.label_groups, 0, wanted.label_groups]
    close(each[1].entities, wanted.entities)
    close(each[3].entities, found.entities)


def test_labels_of_a_bi_encoder_are_not_grouped(bi):
    (found,) = bi.predict_words([WORDS], MANY, threshold=0.3, labels_per_prompt=2)
    assert found.label_groups == 1 and found == bi.predict_words([WORDS], MANY, threshold=0.3)[0]


def test_groups_that_were_not_asked_for_are_said(tiny_model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_model.predict_words([WORDS], MANY, labels_per_prompt=5)
        tiny_model.predict_words([WORDS], LABELS)
        (result,) = tiny_model.predict_words([WORDS], MANY)
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(f"labels: {len(MANY)} labels were asked in {result.label_groups} groups, because")


def test_a_label_that_leaves_no_token_is_an_error_that_names_it(tiny_model):
    for labels in ([*MANY, "x" * 5000], ["x" * 5000]):
        with pytest.raises(ValueError, match=rf"labels: .*'xxx.*\(index {len(labels) - 1}\) alone has \d+ tokens"):
            tiny_model.predict([TEXT], labels, labels_per_prompt=1)
    label = "z"
    while not tiny_model.packer.label_problem([label + "9z"]):
        label += "9z"
    with pytest.warns(UserWarning, match="words alone have more tokens"):  # the longest label leaves one token
        (found,) = tiny_model.predict_words([WORDS[:3]], [*LABELS, label], **EVERYTHING)
    assert found.windows > 1 and {entity[2] for entity in found.entities} == {*LABELS, label}


# thresholds


def test_thresholds_by_label_are_those_of_the_candidates(model, threshold):
    """Applied before the search: a label with a low threshold does not lose to one that does not pass its own."""
    everything = candidates(model, LONG[:40], LABELS)
    by_label = {label: sorted(e[3] for e in everything if LABELS[e[2]] == label) for label in LABELS}
    for shares in ((0.9, 0.5, 0.99), (0.0, 0.95, 0.7)):
        limits = {}
        for (label, scores), share in zip(by_label.items(), shares, strict=True):
            n = int(share * (len(scores) - 9))
            gap = max(range(n, n + 8), key=lambda n: scores[n + 1] - scores[n])
            limits[label] = (scores[gap] + scores[gap + 1]) / 2
        spans = [span for span in everything if span[3] > limits[LABELS[span[2]]]]
        for flat, multi_label in MODES:
            (found,) = model.predict_words([LONG[:40]], LABELS, threshold=limits, flat=flat, multi_label=multi_label)
            close(found.entities, searched(spans, LABELS, flat, multi_label))
    close(
        model.predict_words([LONG], LABELS, threshold=limits)[0].entities,
        oracle(model, LONG, LABELS, limits, windows_of(model, LONG)),
    )


def test_equal_thresholds_by_label_are_the_number(model):
    """Bit for bit."""
    texts = [WORDS, LONG, WORDS[:2]]
    for number in (0.0, 0.3, 0.5, 0.501, 1.0):
        wanted = model.predict_words(texts, LABELS, threshold=number)
        by_label = dict.fromkeys(LABELS, number)
        for given_threshold in (by_label, {"*": number}, {"person": number, "*": number}, [number] * 3, [by_label] * 3,
                                [number, by_label, {"*": number}]):  # fmt: skip
            assert model.predict_words(texts, LABELS, threshold=given_threshold) == wanted


@pytest.mark.parametrize("by_vectors", [False, True])
@pytest.mark.parametrize("count", [3, 400])
def test_equal_thresholds_by_label_are_the_number_for_many_types(bi, monkeypatch, by_vectors, count):
    """Scored by the fold and by span vectors, of which the cheaper is taken."""
    monkeypatch.setattr("glimodern.ops._head.vectors_are_cheaper", lambda *_: by_vectors)
    labels = [f"type {i}" for i in range(count)]
    vectors = bi.encode_labels(labels)
    for threshold in (0.0, clear_threshold(bi, [TEXT], labels[:3])):
        wanted = bi.predict([TEXT, "Ada"], labels, threshold)
        assert wanted[0]
        for by_label in (dict.fromkeys(labels, threshold), {"*": threshold, "type 1": threshold}):
            assert bi.predict([TEXT, "Ada"], labels, by_label) == wanted
            assert bi.predict([TEXT, "Ada"], None, by_label, label_vectors=vectors) == wanted


def test_thresholds_by_text(tiny_model):
    texts, limits = [TEXT, "Ada met Charles .", "", TEXT], [0.3, {"person": 0.4, "*": 1.0}, 0.5, 1]
    wanted = [tiny_model.predict(text, LABELS, limit)[0] for text, limit in zip(texts, limits, strict=True)]
    assert wanted[0] and not wanted[3]
    key = lambda results: [[(e["start"], e["end"], e["label"]) for e in result] for result in results]  # noqa: E731
    for given_limits in (limits, tuple(limits), iter(limits), dict(enumerate(limits)).values()):
        assert key(tiny_model.predict(texts, LABELS, given_limits)) == key(wanted)
    assert key(tiny_model.predict(iter(texts), LABELS, iter(limits))) == key(wanted)
    numbers = [0.3, 0.45, 0.5, 1.0]
    wanted = key(tiny_model.predict(texts, LABELS, numbers))
    for given_limits in (np.array(numbers), torch.tensor(numbers, dtype=torch.float64), (n for n in numbers)):
        assert key(tiny_model.predict(texts, LABELS, given_limits)) == wanted
    words = tiny_model.predict_words([text.split() for text in texts], LABELS, threshold=numbers)
    assert [[label for *_, label, _ in result.entities] for result in words] == [
        [label for *_, label in result] for result in wanted
    ]
    assert tiny_model.predict(texts[:1], LABELS, [0.3]) == tiny_model.predict(texts[0], LABELS, [0.3])


def test_thresholds_of_labels_in_groups(one_word_model):
    """Each group gets those of its own labels."""
    tiny_model = one_word_model
    limits = {label: 0.3 + 0.4 * (n % 7) / 7 for n, label in enumerate(MANY)}
    (everything,) = tiny_model.predict_words([WORDS], MANY, **EVERYTHING, labels_per_prompt=6)
    (found,) = tiny_model.predict_words(
        [WORDS], MANY, threshold=limits, flat=False, multi_label=True, labels_per_prompt=6
    )
    wanted = [entity for entity in everything.entities if abs(entity[3] - limits[entity[2]]) > 1e-6]
    unclear = {entity[:3] for entity in everything.entities} - {entity[:3] for entity in wanted}
    assert len(unclear) < 3
    wanted = sorted(entity[:3] for entity in wanted if entity[3] > limits[entity[2]])
    assert sorted(entity[:3] for entity in found.entities if entity[:3] not in unclear) == wanted
    assert 0 < len(wanted) < len(everything.entities)


@pytest.mark.parametrize(
    ("threshold", "error", "message"),
    [
        ("0.5", TypeError, "threshold: expected a probability, a mapping .*, got the string '0.5'"),
        ("calibrated", ValueError, 'threshold: expected a calibrated model for "calibrated", got one without'),
        (None, TypeError, r"threshold: expected a probability in \[0, 1\], got NoneType"),
        (True, TypeError, r"threshold: expected a probability in \[0, 1\], got bool True"),
        (float("nan"), ValueError, r"threshold: expected a probability in \[0, 1\], got nan"),
        (-0.1, ValueError, r"threshold: expected a probability in \[0, 1\], got -0.1"),
        (b"0.5", TypeError, "threshold: expected a probability, a mapping .*, got bytes"),
        ({0.5, 0.6}, TypeError, "threshold: expected .*, got set, which has no order; give a list"),
        ([0.5], ValueError, r"threshold: expected one threshold per text \(2\), got 1"),
        (lambda: np.full(3, 0.5), ValueError, r"threshold: expected one threshold per text \(2\), got 3"),
        (lambda: np.full((2, 1), 0.5), TypeError, "threshold: expected .*, got ndarray"),
        (iter([0.5]), ValueError, "threshold: expected one threshold per text, got 1 of them and more texts"),
        (iter([0.5] * 3), ValueError, r"threshold: expected one threshold per text \(2\), got more"),
        ([0.5, "0.5"], TypeError, r"threshold\[1\]: expected a probability in \[0, 1\], got str '0.5'"),
        ([0.5, None], TypeError, r"threshold\[1\]: expected a probability in \[0, 1\], got NoneType"),
        ([0.5, [0.5]], TypeError, r"threshold\[1\]: expected a probability in \[0, 1\], got list"),
        ({"person": 2, "*": 0.5}, ValueError, r"threshold\['person'\]: expected a probability in \[0, 1\], got 2.0"),
        ({"person": float("nan"), "*": 0}, ValueError, r"threshold\['person'\]: expected a probability .* got nan"),
        ({"person": None, "*": 0}, TypeError, r"threshold\['person'\]: expected a probability .* got NoneType"),
        ({"person": True, "*": 0}, TypeError, r"threshold\['person'\]: expected a probability .* got bool"),
        ({"person": "0.5", "*": 0}, TypeError, r"threshold\['person'\]: expected a probability .* got str '0.5'"),
        ({3: 0.5, "*": 0}, TypeError, "threshold: key 0: expected a string, got int 3"),
        ({"animal": 0.5, "*": 0}, ValueError, r"threshold: expected labels that are asked, .*, got \['animal'\]"),
        ({"person": 0.5}, ValueError, r"threshold: expected a probability for each label, got none for \['place', 'm"),
        ({}, ValueError, r"threshold: expected a probability for each label, got none for \['person'"),
        ([0.5, {"person": 0.5}], ValueError, r"threshold\[1\]: expected a probability for each label, got none for"),
        ([{"*": 0.5}, {"x": 0.5, "*": 0}], ValueError, r"threshold\[1\]: expected labels that are asked, .*\['x'\]"),
        ([0.5, {"person": 9, "*": 0}], ValueError, r"threshold\[1\]\['person'\]: expected a probability"),
    ],
)
def test_what_is_no_threshold(tiny_model, threshold, error, message):
    with pytest.raises(error, match="^" + message) as said:
        tiny_model.predict([TEXT, "Ada"], LABELS, threshold() if callable(threshold) else threshold)
    assert "\n" not in str(said.value)


def test_thresholds_of_texts_with_other_labels(tiny_model):
    """A mapping may name labels of any text of a list; of a stream it may name any."""
    labels, limits = [["person"], ["place"]], {"person": 0.3, "place": 0.4}
    wanted = [tiny_model.predict(TEXT, ["person"], 0.3)[0], tiny_model.predict(TEXT, ["place"], 0.4)[0]]
    for texts, sets in (([TEXT] * 2, labels), (iter([TEXT] * 2), iter(labels))):
        found = list(tiny_model.predict(texts, sets, limits))
        assert [[e["text"] for e in result] for result in found] == [[e["text"] for e in result] for result in wanted]
    with pytest.raises(ValueError, match=r"threshold: expected labels that are asked, .*, got \['animal'\]"):
        tiny_model.predict([TEXT] * 2, labels, {**limits, "animal": 0.2})
    with pytest.raises(ValueError, match=r"threshold: expected a probability for each label, got none for \['place'\]"):
        tiny_model.predict([TEXT] * 2, labels, {"person": 0.5})


def test_a_bad_threshold_in_a_stream_comes_after_the_results_before_it(tiny_model):
    limits = itertools.chain([0.3] * 50, [float("nan")])
    found = []
    with pytest.raises(ValueError, match=r"threshold\[50\]: expected a probability in \[0, 1\], got nan"):
        for result in tiny_model.predict(iter([TEXT] * 60), LABELS, limits, batch_tokens=64):
            found.append(result)
    assert len(found) == 50 and all(found)


# the best entities


@pytest.mark.parametrize("words", [WORDS, LONG])
def test_the_best_entities_in_their_order(tiny_model, words):
    (every,) = tiny_model.predict_words([words], LABELS, threshold=0.3)
    assert len(every.entities) > 4
    by_score = sorted(every.entities, key=lambda entity: -entity[3])
    for count in (1, 3, len(by_score) - 1, len(by_score), 99):
        (found,) = tiny_model.predict_words([words], LABELS, threshold=0.3, top_k=count)
        kept = [entity for entity in every.entities if entity in by_score[:count]]
        assert found.entities == kept and len(kept) == min(count, len(by_score))
        assert found._replace(entities=[]) == every._replace(entities=[])
    texts = [TEXT, "", "Ada met Charles ."]
    counts = [len(result) for result in tiny_model.predict(texts, LABELS, 0.3, top_k=2)]
    assert counts == [min(2, len(result)) for result in tiny_model.predict(texts, LABELS, 0.3)]
