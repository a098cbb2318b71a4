"""Prediction over streams: order, batching, labels per text, memory, threads."""

import gc
import itertools
import re
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimodern.inference import budget
from glimodern.inference.budget import resolve_batch_tokens
from glimodern.inference.request import Search
from glimodern.inference.stream import find_entities
from glimodern.inference.windows import Reading
from glimodern.network.eval_mode import eval_replica
from tests.conftest import WORDS, make_tiny_model

LABELS = ["person", "place"]
TEXT = " ".join(WORDS)
TEXTS = [TEXT, "Ada met Charles .", "London", "", TEXT + " " + TEXT, "Taylor wrote about London in 1843 ."]


@pytest.fixture(scope="module")
def threshold(tiny_model):
    """A probability that some spans of the random model pass and that none is near."""
    logits = torch.cat(
        [tiny_model.scores(tiny_model.packer.pack([t.split()], [LABELS]))[0].detach().flatten() for t in TEXTS if t]
    )
    values = torch.sigmoid(logits[torch.isfinite(logits)]).sort().values
    upper = values[int(0.8 * len(values)) :]
    gap = int(upper.diff().argmax())
    return float(upper[gap : gap + 2].mean())


def spans(results):
    return [[(e["start"], e["end"], e["label"]) for e in result] for result in results]


def test_an_iterator_streams_in_order_with_a_bounded_window(tiny_model, threshold):
    wanted = tiny_model.predict(TEXTS * 200, LABELS, threshold, batch_tokens=64)
    taken = 0

    def source():
        nonlocal taken
        for text in TEXTS * 200:
            taken += 1
            yield text

    stream = tiny_model.predict(source(), LABELS, threshold, batch_tokens=64)
    assert taken == 0
    first = next(stream)
    assert taken < 300
    assert spans([first, *stream]) == spans(wanted)
    assert taken == 1200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    picks=st.lists(st.integers(0, len(TEXTS) - 1), max_size=12),
    batch_tokens=st.sampled_from([1, 7, 40, 300, "auto"]),
    streamed=st.booleans(),
)
def test_entities_do_not_depend_on_the_batching(tiny_model, threshold, picks, batch_tokens, streamed):
    alone = {pick: tiny_model.predict(TEXTS[pick], LABELS, threshold)[0] for pick in set(picks)}
    texts = [TEXTS[pick] for pick in picks]
    found = list(tiny_model.predict(iter(texts) if streamed else texts, LABELS, threshold, batch_tokens=batch_tokens))
    assert spans(found) == spans(alone[pick] for pick in picks)
    for result, pick in zip(found, picks, strict=True):
        assert [e["score"] for e in result] == pytest.approx([e["score"] for e in alone[pick]], abs=1e-5)


def test_labels_per_text(tiny_model, threshold):
    labels = [["person"], ["place", "person"], ["machine"], ["place"], LABELS, []]
    found = tiny_model.predict(TEXTS, labels, threshold)
    alone = [tiny_model.predict(text, asked, threshold)[0] for text, asked in zip(TEXTS, labels, strict=True)]
    assert spans(found) == spans(alone)
    streamed = tiny_model.predict(iter(TEXTS), iter(labels), threshold)
    assert spans(streamed) == spans(alone)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("texts", "labels"), [(2, 1), (1, 2)])
def test_as_many_labels_as_texts(tiny_model, streamed, texts, labels):
    arguments = [TEXT] * texts, [LABELS] * labels
    with pytest.raises(ValueError, match="labels: expected one label set per text"):
        list(tiny_model.predict(*(map(iter, arguments) if streamed else arguments)))


@pytest.mark.parametrize(
    ("tokens", "error"),
    [(0, ValueError), (-1, ValueError), ("all", ValueError), (2.5, TypeError), (True, TypeError), (None, TypeError)],
)
def test_bad_batch_tokens(tiny_model, tokens, error):
    with pytest.raises(error, match='batch_tokens: expected a number of tokens or "auto"'):
        tiny_model.predict(TEXT, LABELS, batch_tokens=tokens)


def test_an_array_of_batch_tokens(tiny_model):
    with pytest.raises(TypeError, match='batch_tokens: expected a number of tokens or "auto", got ndarray'):
        tiny_model.predict(TEXT, LABELS, batch_tokens=torch.tensor([64, 64]).numpy())


def test_auto_batch_tokens_on_a_cpu():
    assert resolve_batch_tokens("auto", torch.device("cpu"), 1) >= 512


def test_auto_batch_tokens_on_a_gpu(monkeypatch):
    """Half of the free memory, PyTorch's unused cache included, within 4,096 and 65,536 tokens."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16_000_000, 0))
    wanted = [(1, 65_536), (1000, 10_000), (10_000, 4096)]
    budget._free_bytes.cache_clear()
    try:
        assert [(size, resolve_batch_tokens("auto", device, size)) for size, _ in wanted] == wanted
    finally:
        budget._free_bytes.cache_clear()
    assert resolve_batch_tokens(7, device, 1) == 7


@pytest.mark.parametrize(
    "message",
    [
        "CUDA",
        "DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_batch_that_does_not_fit_is_split(tiny_model, threshold, monkeypatch, message):
    wanted = tiny_model.predict(TEXTS, LABELS, threshold)
    whole, sizes = tiny_model._candidates, []

    def cramped(batch, limit, **_):
        sizes.append(len(batch.cu_words) - 1)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError(message) if message == "CUDA" else RuntimeError(message)
        return whole(batch, limit)

    monkeypatch.setattr(tiny_model, "_candidates", cramped)
    assert spans(tiny_model.predict(TEXTS, LABELS, threshold)) == spans(wanted)
    assert sizes[0] == 5 and sum(size for size in sizes if size <= 2) == 5


def test_a_text_that_does_not_fit_is_said(tiny_model, monkeypatch):
    def cramped(batch, limit, **_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tiny_model, "_candidates", cramped)
    with pytest.raises(
        RuntimeError, match=r"a text of \d+ tokens .* fit the memory; give a smaller window, or .* fewer labels"
    ):
        tiny_model.predict(TEXTS, LABELS)


def test_no_batch_is_larger_than_asked(tiny_model, threshold, monkeypatch):
    """But for a text that is larger alone; and few batches are far smaller."""
    whole, sizes = tiny_model._candidates, []

    def watched(batch, limit, **_):
        sizes.append((int(batch.cu_seqlens[-1]), len(batch.cu_words) - 1))
        return whole(batch, limit)

    monkeypatch.setattr(tiny_model, "_candidates", watched)
    tiny_model.predict(TEXTS * 5, LABELS, threshold, batch_tokens=70)
    assert all(tokens <= 70 or texts == 1 for tokens, texts in sizes)
    assert sum(texts for _, texts in sizes) == 25 and max(texts for _, texts in sizes) > 1


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_texts_that_do_not_fit_the_first_is_said(tiny_model, threshold, monkeypatch, first):
    """Whichever is computed first: the longer one."""
    whole = tiny_model._candidates

    def cramped(batch, limit, **_):
        if batch.max_seqlen > 40:
            raise torch.OutOfMemoryError
        return whole(batch, limit)

    both = [TEXT, TEXTS[4]]
    (tokens,) = (int(tiny_model.packer.pack([text.split()], [LABELS]).cu_seqlens[-1]) for text in [both[first]])
    monkeypatch.setattr(tiny_model, "_candidates", cramped)
    wanted, found = spans(tiny_model.predict(["London", "Ada met"], LABELS, threshold)), []
    with pytest.raises(RuntimeError, match=f"a text of {tokens} tokens with its prompt does not fit"):
        for result in tiny_model.predict(
            iter(["London", "Ada met", both[first], "Ada", both[1 - first]]), LABELS, threshold
        ):
            found.append(result)
    assert spans(found) == wanted


def test_other_errors_pass(tiny_model, monkeypatch):
    def broken(batch, limit, **_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(tiny_model, "_candidates", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        tiny_model.predict(TEXTS * 100, LABELS, batch_tokens=64)


def test_a_bad_text_far_into_a_stream_is_an_error(tiny_model):
    texts = itertools.chain(TEXTS * 100, [None])
    with pytest.raises(TypeError, match=r"texts\[600\]: expected a string, got NoneType"):
        list(tiny_model.predict(texts, LABELS, batch_tokens=64))


def test_a_stream_that_is_left_early_leaves_no_thread(tiny_model):
    stream = tiny_model.predict(iter(TEXTS * 200), LABELS, batch_tokens=64)
    next(stream)
    stream.close()
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("glimodern-tokenize")]


def test_two_threads_at_once(tiny_model, threshold):
    texts = TEXTS * 20
    wanted = tiny_model.predict(texts, LABELS, threshold)
    results = {}

    def run(name):
        results[name] = [tiny_model.predict(texts, LABELS, threshold, batch_tokens=200) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [spans(one) for name in range(2) for one in results[name]] == [spans(wanted)] * 6


def test_a_model_in_training_predicts_without_dropout_and_stays_in_training(tiny_model, threshold):
    wanted = spans(tiny_model.predict(TEXTS, LABELS, threshold))
    tiny_model.train()
    try:
        assert spans(tiny_model.predict(TEXTS, LABELS, threshold)) == wanted
        assert tiny_model.training and tiny_model.head.training
    finally:
        tiny_model.eval()


def test_progress_bar(tiny_model, capfd):
    tiny_model.predict(TEXTS, LABELS, progress=True)
    assert "predicting" in capfd.readouterr().err
    tiny_model.predict(TEXTS, LABELS)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("texts", "terminal", "shown"), [(1000, True, False), (1001, True, True), (1001, False, False)]
)
def test_many_texts_on_a_terminal_have_a_progress_bar(tiny_model, capfd, monkeypatch, texts, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    tiny_model.predict([""] * texts, LABELS)
    assert ("predicting" in capfd.readouterr().err) is shown


@pytest.mark.parametrize("streamed", [False, True])
def test_truncation_is_said_where_predict_is_called(tiny_model, streamed):
    texts = [TEXT * 30]
    with pytest.warns(UserWarning, match="1 of 1 texts are longer") as caught:
        list(tiny_model.predict(iter(texts) if streamed else texts, LABELS, long_texts="cut"))
        words = [WORDS * 30]
        list(tiny_model.predict_words(iter(words) if streamed else words, LABELS, long_texts="cut"))
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_truncation_is_said_before_an_error(tiny_model):
    stream = tiny_model.predict(itertools.chain([TEXT * 30, "London"], [None]), LABELS, long_texts="cut")
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer .* \d+ words at their ends were not read"):
        with pytest.raises(TypeError, match=r"texts\[2\]"):
            list(stream)


def test_the_words_of_the_warning_are_those_that_were_cut(tiny_model):
    """By length and by labels apart; of the prompts that cut, the longest is described."""
    labels = [["person"], [f"type {n}" for n in range(12)], [f"t {n}" for n in range(9)], ["place"]]
    texts = [TEXT * 30, TEXT * 2, TEXT * 2, TEXT]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = tiny_model.predict(texts, labels, long_texts="cut")
    cut = [result.words_cut for result in results]
    assert min(cut[:3]) > 0 and cut[3] == 0
    length, room, groups = (str(warning.message) for warning in caught)
    assert length.startswith("1 of 4 texts") and f": {cut[0]} words at their ends" in length
    assert room.startswith("labels: 2 of 4 texts") and f"; {cut[1] + cut[2]} words at the texts' ends" in room
    assert "6 labels take" in room  # of the group that takes most
    assert groups.startswith("labels: 12 labels were asked in 2 groups")


def test_truncation_is_said_once_at_the_end_of_a_stream(tiny_model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = iter([TEXT * 30, "London", TEXT * 30])
        results = list(tiny_model.predict(texts, LABELS, batch_tokens=64, long_texts="cut"))
    assert [result.truncated for result in results] == [True, False, True]
    assert [bool(re.match("2 of 3 texts are longer", str(warning.message))) for warning in caught] == [True]


def resident_mib():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: the resident set cannot be read")
def test_memory_stays_flat_over_ten_thousand_calls(tiny_model):
    """Calls of mixed length; the first fifth fills caches and the allocator's free lists."""
    lengths = [1 + 7 * n % 60 for n in range(60)]
    words = WORDS * 4

    def calls(count):
        for n in range(count):
            tiny_model.predict(" ".join(words[: lengths[n % 60]]), LABELS, 0.9)

    calls(2000)
    gc.collect()
    before = resident_mib()
    calls(8000)
    gc.collect()
    assert resident_mib() - before < 8


def test_find_entities_of_nothing(tiny_model):
    assert list(find_entities([], tiny_model.packer, None, Search(), Reading(), 64)) == []


# errors in the midst of texts


class BrokenError(Exception):
    pass


def broken_after(count, items):
    yield from itertools.islice(itertools.cycle(items), count)
    raise BrokenError


TOO_LONG = ["person", "x" * 5000]


def too_long_after(count):
    yield from itertools.repeat(LABELS, count)
    yield TOO_LONG


STREAMS = {
    "a bad text": (lambda: itertools.chain(TEXTS * 25, [None], TEXTS), lambda: LABELS, TypeError, r"texts\[150\]"),
    "a surrogate": (lambda: itertools.chain(TEXTS * 25, ["\ud800"]), lambda: LABELS, ValueError, r"texts\[150\]"),
    "the texts' own error": (lambda: broken_after(150, TEXTS), lambda: LABELS, BrokenError, "^$"),
    "the labels' own error": (lambda: iter(TEXTS * 40), lambda: broken_after(150, [LABELS]), BrokenError, "^$"),
    "labels that end": (lambda: iter(TEXTS * 40), lambda: [LABELS] * 150, ValueError, "per text, got 150 of them"),
    "a label too long": (lambda: iter(TEXTS * 40), lambda: too_long_after(150), ValueError, r"labels\[150\]: 2 lab"),
    "an empty label": (
        lambda: iter(TEXTS * 40), lambda: itertools.chain([LABELS] * 150, [["a", ""]]), ValueError,
        r"labels\[150\]\[1\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("batch_tokens", [64, "auto"])
def test_results_before_an_error_of_a_stream_are_given(tiny_model, threshold, name, batch_tokens):
    texts, labels, error, message = STREAMS[name]
    wanted = spans(tiny_model.predict(TEXTS * 25, LABELS, threshold))
    found = []
    with pytest.raises(error, match=message):
        for result in tiny_model.predict(texts(), labels(), threshold, batch_tokens=batch_tokens):
            found.append(result)
    assert spans(found) == wanted


def test_results_before_a_failing_batch_are_given(tiny_model, threshold, monkeypatch):
    """A long text, computed first, that does not fit the memory: those before it come all the same."""
    whole = tiny_model._candidates

    def cramped(batch, limit, **_):
        if batch.max_seqlen > 60:
            raise torch.OutOfMemoryError
        return whole(batch, limit)

    short = [text for text in TEXTS if text != TEXTS[4]]
    monkeypatch.setattr(tiny_model, "_candidates", cramped)
    wanted = spans(tiny_model.predict(short, LABELS, threshold))
    found = []
    with pytest.raises(RuntimeError, match="does not fit the memory"):
        for result in tiny_model.predict(iter([*short, TEXTS[4], *short]), LABELS, threshold, batch_tokens=64):
            found.append(result)
    assert spans(found) == wanted


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([*TEXTS, None], LABELS),
        ([*TEXTS, "\ud800"], LABELS),
        (TEXTS, [LABELS] * 5 + [["a", 3]]),
        (TEXTS, [LABELS] * 5 + [TOO_LONG]),
        (TEXTS, too_long_after(5)),
        (iter(TEXTS), [LABELS] * 5 + [["a", ""]]),
    ],
)
def test_what_has_a_length_is_checked_before_anything_is_computed(tiny_model, monkeypatch, texts, labels):
    monkeypatch.setattr(tiny_model, "_candidates", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises((TypeError, ValueError), match=r"(texts\[6\]|labels\[5\])"):
        tiny_model.predict(texts, labels)


# labels that take the room


def test_labels_that_do_not_fit_one_prompt_are_asked_in_groups(tiny_model):
    labels = [f"type number {i}" for i in range(60)]
    with pytest.warns(UserWarning, match="labels: 60 labels were asked in .* half of the encoder's tokens") as said:
        (result,) = tiny_model.predict_words([WORDS], labels)
    assert f"in {result.label_groups} groups" in str(said[0].message) and result.label_groups > 1
    assert result.words_cut == 0
    wanted = {label for *_, label, _ in tiny_model.predict_words([WORDS], labels[-1:], threshold=0.0)[0].entities}
    (every,) = tiny_model.predict_words(
        [WORDS], labels, threshold=0.0, flat=False, multi_label=True, labels_per_prompt=10
    )
    assert wanted <= {label for *_, label, _ in every.entities} == set(labels)


def test_labels_that_do_not_fit_one_prompt_say_how_many_would(tiny_model):
    """A packed batch has no groups: its one prompt must leave room for the text."""
    labels = [f"type number {i}" for i in range(60)]
    pack = tiny_model.packer.pack
    with pytest.raises(
        ValueError, match=r"labels: 60 labels do not fit the prompt.*128 tokens.*the first \d+ would"
    ) as e:
        pack([WORDS], [labels])
    fit = int(re.search(r"the first (\d+) would", str(e.value)).group(1))
    assert pack([WORDS], [labels[:fit]]).words_cut[0] > 0
    with pytest.raises(ValueError, match="do not fit the prompt"):
        pack([WORDS], [labels[: fit + 1]])


def test_one_long_label_is_named(tiny_model):
    with pytest.raises(ValueError, match=r"'xxx.*\.\.\. \(index 1\) alone has \d+ tokens; shorten it"):
        tiny_model.predict(TEXT, ["person", "x" * 5000])
    with pytest.raises(ValueError, match="1 label does not fit the prompt"):
        tiny_model.predict(TEXT, ["x" * 5000])


def test_the_warning_says_whether_text_or_labels_are_too_long(tiny_model):
    long_label = "z"
    while tiny_model.packer.label_lengths([long_label])[0] < 95:
        long_label += "z9"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = tiny_model.predict([TEXT, TEXT * 30, "London"], ["person", long_label], long_texts="cut")
    assert [result.truncated for result in results] == [True, True, False]
    text, labels, groups = (str(warning.message) for warning in caught)
    assert text.startswith("1 of 3 texts are longer than the model takes")
    assert re.match(
        r"labels: 1 of 3 texts .* 1 labels take \d+ of 128 tokens; the longest is 'zz9.*\.\.\. \(index 0\)", labels
    )
    assert groups.startswith("labels: 2 labels were asked in 2 groups")


# modes


def test_predict_leaves_every_mode_as_it_is(tiny_model, threshold):
    """Also where a submodule was set by hand: predict has no dropout and changes nothing."""
    model = make_tiny_model(dropout=0.5, max_width=6)
    model.load_state_dict(tiny_model.state_dict())
    wanted = spans(tiny_model.predict(TEXTS, LABELS, threshold))
    for setting in ("train", "encoder in eval", "head in train"):
        model.train(setting != "head in train")
        if setting == "encoder in eval":
            model.encoder.eval()
        if setting == "head in train":
            model.head.train()
        modes = [module.training for module in model.modules()]
        assert any(modes) and (setting == "train" or not all(modes))
        assert spans(model.predict(TEXTS, LABELS, threshold)) == wanted
        assert [module.training for module in model.modules()] == modes


def test_predict_beside_training_in_another_thread(tiny_model, threshold):
    """One thread predicts while others switch modes and predict: no result has dropout, no mode is lost."""
    model = make_tiny_model(dropout=0.5, max_width=6)
    model.load_state_dict(tiny_model.state_dict())
    wanted, found, stop = spans(tiny_model.predict(TEXTS, LABELS, threshold)), [], threading.Event()

    def switch():
        while not stop.is_set():
            model.train()
            model.eval()

    def predict():
        found.extend(spans(model.predict(TEXTS, LABELS, threshold)) for _ in range(15))

    switching = threading.Thread(target=switch)
    predicting = [threading.Thread(target=predict) for _ in range(2)]
    switching.start()
    for thread in predicting:
        thread.start()
    for thread in predicting:
        thread.join()
    stop.set()
    switching.join()
    assert found == [wanted] * 30
    assert not any(module.training for module in model.modules())


def test_training_mode_stays_on_while_another_thread_predicts(tiny_model):
    model = make_tiny_model(dropout=0.5).train()
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(all(module.training for module in model.modules()))

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(5):
        model.predict(TEXTS, LABELS, 0.9)
    done.set()
    thread.join()
    assert seen and all(seen)


def test_a_replica_shares_parameters_and_hooks(tiny_model):
    model = make_tiny_model(dropout=0.5).train()
    calls = []
    handle = model.head.prompt.register_forward_hook(lambda *_: calls.append(1))
    replica = eval_replica(model)
    assert [a is b for a, b in zip(replica.parameters(), model.parameters(), strict=True)]
    model.predict("Ada met", LABELS)
    handle.remove()
    assert len(calls) == 1
    model.head.start.forward = lambda x: x
    with pytest.raises(ValueError, match=r"a forward that is not its class's own, .*call model\.eval\(\)"):
        model.predict("Ada met", LABELS)
    assert model.eval().predict("Ada met", LABELS) is not None
