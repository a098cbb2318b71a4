"""AsyncPredictor: concurrent calls that share batches have the results, warnings and errors of predict."""

import asyncio
import multiprocessing
import threading
import warnings

import numpy as np
import pytest
import torch

import glimodern
from glimodern import AsyncPredictor, QueueFullError
from glimodern.inference.pool import Pool
from glimodern.model.engine import Engine
from glimodern.model.glimodern import GLiModern
from tests.bi_encoder_rows import save_encoder
from tests.conftest import WORDS, clear_threshold
from tests.served import SECONDS, Gate, save_served, served_model
from tests.test_bi_encoder import make_bi

LABELS = ["person", "place", "machine"]
TEXT = " ".join(WORDS)
LONG = " ".join(WORDS * 12)
TEXTS = [TEXT, "Ada met Charles .", "London", "", "  ", LONG, TEXT + " " + TEXT, "Taylor wrote about London in 1843 ."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served_model(save_served(tmp_path_factory.mktemp("async") / "model"))


@pytest.fixture(scope="module")
def threshold(model):
    return clear_threshold(model, TEXTS, LABELS)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, SECONDS))


def same(found, wanted):
    """Assert that results are equal, bit for bit."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        assert (one.windows, one.words_cut) == (other.windows, other.words_cut)


def calls(threshold):
    """Calls with many kinds of options: (texts, labels, options)."""
    per_label = {"person": threshold, "*": 0.9}
    return [
        (TEXT, LABELS, {}),
        (TEXTS, LABELS, {"threshold": threshold}),
        (TEXTS[::-1], ["place"], {"threshold": threshold, "flat": False}),
        (TEXT, {"person": "machine", "town": "place"}, {"threshold": per_label}),
        (LONG, [f"label {i}" for i in range(20)], {"threshold": threshold, "multi_label": True}),
        (LONG, LABELS, {"threshold": threshold, "long_texts": "cut", "top_k": 2}),
        (LONG, LABELS, {"threshold": threshold, "window": 20, "context": 3, "labels_per_prompt": 1}),
        (LONG, LABELS, {"threshold": threshold, "window": "sentence", "scores": "all"}),
        ([TEXT, LONG], [LABELS, ["place"]], {"threshold": [threshold, 0.1], "scores": "all"}),
        (TEXT, LABELS, {"threshold": 0.0, "spans": [(0, 12), (17, 32)]}),
        ([TEXT, LONG], LABELS, {"threshold": 0.0, "spans": [[(0, 12)], [(0, 3), (17, 32)]], "scores": "all"}),
        ([], LABELS, {}),
        (["", " "], LABELS, {"threshold": 0.0}),
        (TEXT, [], {}),
        (np.array([TEXT, "London"]), LABELS, {"threshold": threshold}),
    ]


@pytest.mark.parametrize("batch_tokens", ["auto", 40])
def test_concurrent_calls_have_the_results_of_predict_bit_for_bit(model, threshold, batch_tokens):
    asked = calls(threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = [model.predict(texts, labels, **options) for texts, labels, options in asked]

        async def ask():
            async with AsyncPredictor(model, batch_tokens=batch_tokens) as predictor:
                coroutines = [predictor.predict(texts, labels, **options) for texts, labels, options in asked]
                return await asyncio.gather(*coroutines * 2)

        found = run(ask())
    assert any(entities for result in wanted for entities in result)
    for one, other in zip(found, wanted * 2, strict=True):
        same(one, other)


def test_vectors_are_those_of_predict(model, threshold):
    wanted = model.predict(TEXTS, LABELS, threshold, vectors=True)

    async def ask():
        async with AsyncPredictor(model) as predictor:
            return await predictor.predict(TEXTS, LABELS, threshold, vectors=True)

    found = run(ask())
    for one, other in zip(found, wanted, strict=True):
        assert [e["score"] for e in one] == [e["score"] for e in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a["vector"], b["vector"], rtol=1e-4, atol=1e-6)


def test_calls_with_and_without_label_vectors_of_a_bi_encoder(tmp_path):
    save_encoder(tmp_path / "labels", "bert", 48, 330)
    make_bi(tmp_path / "labels").save_pretrained(tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model", dtype="fp32")
    vectors = model.encode_labels(LABELS), model.encode_labels(["place", "person"])
    threshold = clear_threshold(model, TEXTS, LABELS)
    wanted = [model.predict(TEXTS, threshold=threshold, label_vectors=given) for given in vectors]
    wanted.append(model.predict(TEXTS, ["machine"], threshold))

    async def ask():
        async with AsyncPredictor(model) as predictor:
            return await asyncio.gather(
                *(predictor.predict(TEXTS, threshold=threshold, label_vectors=given) for given in vectors),
                predictor.predict(TEXTS, ["machine"], threshold),
            )

    for one, other in zip(run(ask()), wanted, strict=True):
        same(one, other)


BAD = [
    ((3, LABELS), {}),
    (([TEXT, None], LABELS), {}),
    ((["\ud800"], LABELS), {}),
    (({"a", "b"}, LABELS), {}),
    ((TEXT, "person"), {}),
    ((TEXT, None), {}),
    ((TEXT, [""]), {}),
    ((TEXT, LABELS, 2.0), {}),
    ((TEXT, LABELS, {"thing": 0.5}), {}),
    ((TEXT, LABELS, "calibrated"), {}),
    ((TEXT, LABELS, 0.5, 1), {}),
    ((TEXT, LABELS), {"top_k": 0}),
    ((TEXT, LABELS), {"scores": "some"}),
    ((TEXT, LABELS), {"window": 1}),
    ((TEXT, LABELS), {"long_text": "cut"}),
    ((TEXT, LABELS), {"spans": [(0, 1000)]}),
    ((LONG, LABELS), {"long_texts": "error"}),
    (([TEXT, LONG], LABELS), {"long_texts": "error"}),
    ((TEXT,), {"label_vectors": 3}),
]


@pytest.mark.parametrize(("arguments", "options"), BAD)
def test_errors_are_those_of_predict(model, arguments, options):
    with pytest.raises((TypeError, ValueError)) as wanted:
        model.predict(*arguments, **options)

    async def ask():
        async with AsyncPredictor(model) as predictor:
            results = await asyncio.gather(
                predictor.predict(TEXT, LABELS), predictor.predict(*arguments, **options), return_exceptions=True
            )
            return results

    good, bad = run(ask())
    assert isinstance(good, list)
    assert (type(bad), str(bad)) == (wanted.type, str(wanted.value))


def test_a_stream_is_refused(model):
    async def ask():
        async with AsyncPredictor(model) as predictor:
            await predictor.predict((text for text in TEXTS), LABELS)

    with pytest.raises(TypeError, match="texts: expected a string or an iterable of strings with a length, got gen"):
        run(ask())


def test_warnings_are_those_of_predict_and_point_at_the_caller(model):
    with pytest.warns(UserWarning) as wanted:
        model.predict(LONG, LABELS, long_texts="cut")

    async def ask():
        async with AsyncPredictor(model) as predictor:
            await predictor.predict(LONG, LABELS, long_texts="cut")

    with pytest.warns(UserWarning) as found:
        run(ask())
    assert [str(w.message) for w in found] == [str(w.message) for w in wanted]
    assert found[0].filename == __file__


def test_a_text_that_fails_fails_alone(model, threshold, monkeypatch):
    """A batch with a broken text is divided until the text stands alone."""
    candidates = model._candidates
    broken = model.packer.pack([["London"]], [LABELS]).input_ids

    def fail(batch, threshold, label_vectors=None):
        ends = batch.cu_seqlens.tolist()
        if any(torch.equal(batch.input_ids[a:b], broken) for a, b in zip(ends, ends[1:], strict=False)):
            raise ZeroDivisionError("broken")
        return candidates(batch, threshold, label_vectors=label_vectors)

    good = [text for text in TEXTS if text != "London"]
    wanted = model.predict(good, LABELS, threshold)
    monkeypatch.setattr(model, "_candidates", fail)
    engine = Engine()
    try:
        answers = engine.submit(model, TEXTS, LABELS, threshold).result(SECONDS)
        other = engine.submit(model, good, LABELS, threshold).result(SECONDS)
    finally:
        engine.close()
    failed = TEXTS.index("London")
    assert [type(outcome).__name__ for outcome in answers.outcomes].count("Answer") == len(good)
    assert isinstance(answers.outcomes[failed], ZeroDivisionError)
    same([answers.entities_of(i) for i in range(len(TEXTS)) if i != failed], wanted)
    same(other.entities(), wanted)
    with pytest.raises(ZeroDivisionError):
        answers.entities()


def test_a_batch_that_does_not_fit_the_memory_is_divided(model, threshold, monkeypatch):
    candidates = model._candidates

    def full(batch, threshold, label_vectors=None):
        if int(batch.cu_seqlens[-1]) > 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return candidates(batch, threshold, label_vectors=label_vectors)

    wanted = model.predict(TEXTS, LABELS, threshold, window=20)
    monkeypatch.setattr(model, "_candidates", full)
    engine = Engine()
    try:
        same(engine.submit(model, TEXTS, LABELS, threshold, window=20).result(SECONDS).entities(), wanted)
        alone = engine.submit(model, " ".join(WORDS * 3), LABELS, threshold, long_texts="cut").result(SECONDS).outcomes
    finally:
        engine.close()
    assert isinstance(alone[0], RuntimeError) and "does not fit the memory" in str(alone[0])


def test_an_error_after_the_computation_reaches_the_call(model, monkeypatch):
    monkeypatch.setattr("glimodern.inference.pool.decode_texts", lambda *a, **k: 1 / 0)
    engine = Engine()
    try:
        (outcome,) = engine.submit(model, TEXT, LABELS).result(SECONDS).outcomes
    finally:
        engine.close()
    assert isinstance(outcome, ZeroDivisionError)


def test_an_error_of_the_observer_fails_the_calls_in_the_queue_and_no_others(model, monkeypatch):
    broken = [True]

    def observe(report):
        if broken.pop():
            raise ZeroDivisionError("observer")
        broken.append(False)

    gate = Gate(monkeypatch, model)
    engine = Engine(on_batch=observe, batch_tokens=30)
    try:
        waiting = engine.submit(model, [TEXT] * 20, LABELS)
        assert gate.reached.wait(SECONDS)
        gate.open.set()
        with pytest.raises(ZeroDivisionError):
            waiting.result(SECONDS)
        broken.append(False)
        assert len(engine.submit(model, TEXT, LABELS).result(SECONDS).outcomes) == 1
    finally:
        engine.close()


def test_a_cancelled_call_costs_nothing_more(model, monkeypatch):
    gate = Gate(monkeypatch, model)

    async def ask():
        async with AsyncPredictor(model, batch_tokens=30) as predictor:
            large = asyncio.ensure_future(predictor.predict([TEXT] * 50, LABELS))
            assert await asyncio.to_thread(gate.reached.wait, SECONDS)
            large.cancel()
            await asyncio.gather(large, return_exceptions=True)
            assert predictor._engine.queued_calls == 0
            gate.open.set()
            await predictor.predict(TEXT, LABELS)
        assert large.cancelled()

    run(ask())
    assert len(gate.batches) == 2  # the one that was computed at that time, and that of the other call


def test_a_full_queue_refuses_a_call_and_says_when_to_come_back(model, monkeypatch):
    gate = Gate(monkeypatch, model)

    async def ask():
        async with AsyncPredictor(model, max_calls=3) as predictor:
            taken = [asyncio.ensure_future(predictor.predict(TEXT, LABELS)) for _ in range(3)]
            assert await asyncio.to_thread(gate.reached.wait, SECONDS)
            with pytest.raises(QueueFullError, match="queue: expected room for another call, got 3 calls") as full:
                await predictor.predict(TEXT, LABELS)
            assert 0 <= full.value.retry_after <= predictor._engine.max_delay
            gate.open.set()
            await asyncio.gather(*taken)
            return await predictor.predict("London", LABELS)

    assert len(run(ask())) == 1


def test_the_queue_is_bounded_by_the_time_that_it_takes(model, monkeypatch):
    engine = Engine(max_delay=1.0, batch_tokens=64)
    gate = Gate(monkeypatch, model)
    try:
        for tokens in (10, 64, 30):
            engine._cost.add(tokens, 0.01 * tokens)  # 100 tokens a second
        first = engine.submit(model, [TEXT] * 100, LABELS)  # the queue was empty
        assert gate.reached.wait(SECONDS)
        with pytest.raises(QueueFullError) as full:
            engine.submit(model, TEXT, LABELS)
        with pytest.raises(QueueFullError):
            engine.check_room()
        assert 0 < full.value.retry_after <= 1.0
        first.cancel()
        engine.check_room()
        gate.open.set()
        assert engine.submit(model, TEXT, LABELS).result(SECONDS)
    finally:
        gate.open.set()
        engine.close()


def test_a_small_call_is_answered_before_a_large_one(model, monkeypatch):
    monkeypatch.setattr("glimodern.inference.pool._SHORT_TOKENS", 100)
    gate = Gate(monkeypatch, model)
    order = []
    engine = Engine(batch_tokens=60)
    try:
        large = engine.submit(model, [TEXT] * 60, LABELS)
        assert gate.reached.wait(SECONDS)
        small = [engine.submit(model, TEXT, LABELS) for _ in range(4)]
        for name, future in (("large", large), *((f"small {i}", future) for i, future in enumerate(small))):
            future.add_done_callback(lambda future, name=name: order.append(name))
        gate.open.set()
        large.result(SECONDS)
    finally:
        engine.close()
    assert order == ["small 0", "small 1", "small 2", "small 3", "large"]


def test_texts_of_several_calls_share_a_batch(model, monkeypatch):
    gate = Gate(monkeypatch, model)
    reports = []
    engine = Engine(on_batch=reports.append)
    try:
        first = engine.submit(model, TEXT, LABELS)
        assert gate.reached.wait(SECONDS)
        others = [engine.submit(model, TEXT, [f"label {i}"], 0.1 * i, flat=i % 2 == 0) for i in range(6)]
        gate.open.set()
        for future in (first, *others):
            future.result(SECONDS)
    finally:
        engine.close()
    assert gate.batches[0] == 1 and sum(gate.batches) == 7 and len(gate.batches) < 7
    assert sum(report.calls for report in reports) == 7
    assert all(report.tokens > 0 and report.seconds > 0 for report in reports)


def test_close_answers_what_was_accepted_and_takes_no_more(model, threshold, monkeypatch):
    gate = Gate(monkeypatch, model)
    engine = Engine()
    futures = [engine.submit(model, TEXTS, LABELS, threshold) for _ in range(3)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    for future in futures:
        assert future.done()
        same(future.result().entities(), model.predict(TEXTS, LABELS, threshold))
    with pytest.raises(RuntimeError, match="engine is closed"):
        engine.submit(model, TEXT, LABELS)
    engine.close()  # again, without harm
    Engine().close()  # never used


def test_close_without_draining_cancels(model, monkeypatch):
    gate = Gate(monkeypatch, model)
    engine = Engine(batch_tokens=30)
    future = engine.submit(model, [TEXT] * 50, LABELS)
    assert gate.reached.wait(SECONDS)
    threading.Timer(0.0, gate.open.set).start()
    engine.close(drain=False)
    assert future.cancelled()
    assert engine.queued_calls == 0


def test_calls_from_several_event_loops_and_threads(model, threshold):
    wanted = model.predict(TEXTS, LABELS, threshold)
    predictor = AsyncPredictor(model)
    found = []

    def work():
        found.append(asyncio.run(predictor.predict(TEXTS, LABELS, threshold)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    run(predictor.aclose())
    assert len(found) == 8
    for results in found:
        same(results, wanted)


def _in_child(engine, model, connection):
    try:
        engine.submit(model, TEXT, LABELS)
    except RuntimeError as error:
        connection.send(str(error))


def test_a_forked_process_is_told_to_create_its_own(model):
    engine = Engine()
    engine.submit(model, TEXT, LABELS).result(SECONDS)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(engine, model, there))
    child.start()
    assert here.poll(SECONDS)
    assert "belongs to the process that created it" in here.recv()
    child.join(SECONDS)
    engine.close()


def test_names_at_the_top():
    assert glimodern.AsyncPredictor is AsyncPredictor
    assert glimodern.QueueFullError is QueueFullError
    with pytest.raises(TypeError, match="model: expected a GLiModern, got str; load one"):
        AsyncPredictor("folder")
    with pytest.raises(ValueError, match=r"max_delay: expected seconds > 0 and < 1e\+09, got 0"):
        Engine(max_delay=0)
    with pytest.raises(ValueError, match="max_calls: expected a number of calls of at least 1, got 0"):
        Engine(max_calls=0)


def test_a_call_given_up_while_the_computing_thread_looks_for_work(model):
    looked = threading.Event()

    class Emptied(Pool):
        """A pool whose first job is given up after the first look that finds tokens in it."""

        @property
        def tokens(self):
            found = self.__dict__["tokens"]
            if found and not looked.is_set() and threading.current_thread().name == "glimodern-compute":
                looked.set()
                self.cancel(self._short[0])
            return found

        @tokens.setter
        def tokens(self, value):
            self.__dict__["tokens"] = value

    engine = Engine()
    engine._pool = Emptied()
    first = engine.submit(model, TEXT, LABELS)
    assert looked.wait(SECONDS)
    assert first.cancel()
    assert len(engine.submit(model, TEXT, LABELS).result(SECONDS).outcomes) == 1
    engine.close()


def test_a_forked_process_is_told_even_if_the_lock_was_taken_when_it_was_forked(model, monkeypatch):
    engine, errors = Engine(), []

    def submit():
        try:
            engine.submit(model, TEXT, LABELS)
        except RuntimeError as error:
            errors.append(str(error))

    monkeypatch.setattr(engine, "_process", -1)
    thread = threading.Thread(target=submit, daemon=True)
    with engine._lock:
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert errors == ["the engine belongs to the process that created it; create one in this process"]
