"""The client of a server: what it sends, how it waits, what it makes of answers (glimodern.client)."""

import asyncio
import datetime
import email.utils
import json
import logging
import pickle
import subprocess
import sys
import traceback
import warnings

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extra client")

from glimodern.client import (  # noqa: E402
    AsyncClient,
    Client,
    NotAuthorizedError,
    Redaction,
    RefusedError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
    UnreadableAnswerError,
)
from glimodern.inference.entities import Entities  # noqa: E402
from tests.stub_server import MODELS, Answer, Stub, refusal, serving  # noqa: E402

TEXT = "The band 🎸 plays in this city."
LABELS = ["band", "city"]
FOUND = [
    {"start": 4, "end": 8, "text": "band", "label": "band", "score": 0.75},
    {"start": 25, "end": 29, "text": "city", "label": "city", "score": 0.75},
]
URL = "http://glimodern.test"


class Both:
    """Both clients over one stub without a network, called alike. waits: what they slept, in seconds."""

    def __init__(self, kind, stub, **options):
        self.kind, self.stub, self.waits, self.outcomes, self.most, self.now = kind, stub, [], [], 0, 0
        options = {"random": lambda: 0.5, **options}
        if kind == "blocking":
            self.client = Client(URL, transport=httpx.MockTransport(self.handle), sleep=self.waits.append, **options)
        else:
            self.client = AsyncClient(URL, transport=httpx.MockTransport(self.ahandle), sleep=self.asleep, **options)

    def handle(self, request):
        if self.outcomes:
            raise self.outcomes.pop(0)
        answer = self.stub.answer(request.url.path, request.headers, request.content)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        return httpx.Response(answer.status, content=content, headers={"X-Request-ID": "r1", **answer.headers})

    async def ahandle(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)  # others may send meanwhile
        self.now -= 1
        return self.handle(request)

    async def asleep(self, seconds):
        self.waits.append(seconds)

    def __getattr__(self, method):
        def call(*arguments, **options):
            if self.kind == "blocking":
                return getattr(self.client, method)(*arguments, **options)

            async def run():
                return await getattr(self.client, method)(*arguments, **options)

            return asyncio.run(run())

        return call

    def bodies(self):
        return [body for path, body in self.stub.requests]


@pytest.fixture(params=["blocking", "asyncio"])
def make(request, monkeypatch):
    monkeypatch.delenv("GLIMODERN_TOKEN", raising=False)
    return lambda stub=None, **options: Both(request.param, stub or Stub(), **options)


# --- what is asked and answered ----------------------------------------------------------------------------------


def test_a_string_gives_entities(make):
    client = make()
    entities = client.entities(TEXT, LABELS)
    assert type(entities) is Entities and entities == FOUND
    assert (entities.windows, entities.words_cut, entities.truncated) == (1, 0, False)
    assert client.stub.requests == [("/v1/entities", {"labels": LABELS, "text": TEXT})]


def test_several_texts_give_a_list(make):
    client = make()
    assert client.entities((text for text in [TEXT, "", TEXT]), {"group": "band"}) == [
        [{**FOUND[0], "label": "group"}], [], [{**FOUND[0], "label": "group"}],
    ]  # fmt: skip
    assert client.bodies() == [{"labels": {"group": "band"}, "texts": [TEXT, "", TEXT]}]
    assert client.entities([], LABELS) == [] and len(client.bodies()) == 1


def test_the_entities_are_those_of_predict(make, tiny_model):
    texts = ["Ada Lovelace met Charles Babbage in London 🎉.", "", "the Analytical Engine"]
    labels, options = {"who": "person", "place": "place"}, {"threshold": 0.3, "flat": False, "multi_label": True}

    class Predicting(Stub):
        def answer(self, path, headers, body):
            asked = json.loads(body)
            results = tiny_model.predict(
                asked.pop("texts"), asked.pop("labels"), **{key: asked[key] for key in options}
            )
            rows = [{"entities": r, "windows": r.windows, "words_cut": r.words_cut} for r in results]
            return Answer(200, {"model": "tiny", "results": rows, "warnings": []})

    client = make(Predicting())
    expected = tiny_model.predict(texts, labels, **options)
    assert any(expected)
    answers = client.entities(texts, labels, **options)
    assert answers == expected
    assert [answer.windows for answer in answers] == [entities.windows for entities in expected]


def test_options_are_sent_as_json(make):
    import numpy as np

    client = make()
    options = {
        "model": "large", "threshold": {"band": np.float32(0.5), "*": 1}, "flat": np.bool_(False), "multi_label": True,
        "top_k": np.int64(3), "long_texts": "cut", "window": "sentence", "context": None, "labels_per_prompt": 5,
        "timeout": 7,
    }  # fmt: skip
    client.entities(TEXT, LABELS, **options)
    client.entities(TEXT, LABELS, threshold="calibrated", window=9)
    first, second = client.bodies()
    assert first == {
        "text": TEXT, "labels": LABELS, **options, "threshold": {"band": 0.5, "*": 1.0}, "flat": False, "top_k": 3,
    }  # fmt: skip
    assert second == {"text": TEXT, "labels": LABELS, "threshold": "calibrated", "window": 9}


def test_redact(make):
    client = make()
    redaction = client.redact(TEXT, LABELS, style="mask")
    assert type(redaction) is Redaction and redaction.text == "The [BAND_1] 🎸 plays in this [CITY_2]."
    for entity, replacement in zip(redaction.entities, ("[BAND_1]", "[CITY_2]"), strict=True):
        assert redaction.text[entity["redacted_start"] : entity["redacted_end"]] == entity["replacement"] == replacement
    assert client.stub.requests == [("/v1/redact", {"labels": LABELS, "style": "mask", "text": TEXT})]
    assert [one.text for one in client.redact(["a band", "a city"], LABELS)] == ["a [BAND_1]", "a [CITY_1]"]


def test_models_and_ready(make):
    client = make()
    client.stub.models = [{**MODELS[0], "added later": 1}]
    (model,) = client.models()
    assert model._asdict() == MODELS[0]
    assert client.ready() is True
    client.stub.script = [Answer(503, {"status": "loading"}), Answer(503, {"status": "draining"}), refusal(404)]
    assert (client.ready(), client.ready()) == (False, False)
    with pytest.raises(ServerError):
        client.ready()
    client.outcomes = [httpx.ConnectError("refused")]
    assert client.ready() is False and client.waits == []


def test_labels_and_thresholds_of_each_text(make):
    client = make(max_texts=2)
    texts, labels = ["band city", "band city", "band city"], [["band"], {"town": "city"}, LABELS]
    answers = client.entities(texts, labels, threshold=[0.1, {"*": 0.2}, 0.3])
    assert [[entity["label"] for entity in answer] for answer in answers] == [["band"], ["town"], ["band", "city"]]
    first, second = sorted(client.bodies(), key=lambda body: -len(body["texts"]))
    assert first == {
        "texts": texts[:2], "labels": [["band"], {"town": "city"}], "threshold": [0.1, {"*": 0.2}],
    }  # fmt: skip
    assert second == {"texts": texts[2:], "labels": [LABELS], "threshold": [0.3]}
    assert client.entities("band", [["band"]], threshold=[0.5]) == [{**FOUND[0], "start": 0, "end": 4}]
    assert client.bodies()[-1] == {"text": "band", "labels": ["band"], "threshold": 0.5}


# --- bounds of a request -----------------------------------------------------------------------------------------


def test_long_lists_are_sent_in_parts(make):
    client = make(max_texts=3)
    texts = ["band", "x", "city", "y", "band city", "z", "city"]
    answers = client.entities(texts, LABELS)
    assert sorted(len(body["texts"]) for body in client.bodies()) == [1, 3, 3]
    assert [[entity["text"] for entity in answer] for answer in answers] == [
        ["band"], [], ["city"], [], ["band", "city"], [], ["city"],
    ]  # fmt: skip


def test_bytes_bound_a_request(make):
    client = make(max_bytes=120)
    texts = ["é" * 10, "ü" * 10, "x" * 300, "y\n" * 3, "z"]
    client.entities(texts, LABELS)
    parts = [body["texts"] for body in client.bodies()]
    assert sorted(sum(parts, []), key=texts.index) == texts
    assert texts[2:3] in parts  # larger than the bound: alone, and the server judges
    sizes = [len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()) for body in client.bodies()]
    assert sorted(sizes)[-2] <= 120
    assert len(parts) == 3


def test_requests_at_a_time_are_bounded(monkeypatch):
    monkeypatch.delenv("GLIMODERN_TOKEN", raising=False)
    client = Both("asyncio", Stub(), max_texts=1, concurrency=3)

    async def two_calls():
        texts = [f"band {i}" for i in range(8)]
        return await asyncio.gather(client.client.entities(texts, LABELS), client.client.entities(texts, LABELS))

    assert [len(answers) for answers in asyncio.run(two_calls())] == [8, 8]
    assert client.most == 3


def test_an_error_ends_the_other_requests(monkeypatch):
    monkeypatch.delenv("GLIMODERN_TOKEN", raising=False)
    client = Both("asyncio", Stub(), max_texts=1, concurrency=2)
    with pytest.raises(RefusedError, match=r"^texts\[0\]: "):
        client.entities(["fail"] + ["band"] * 50, LABELS)
    assert len(client.bodies()) <= 4


# --- texts that failed alone, refusals ---------------------------------------------------------------------------


def test_a_text_that_failed_alone(make):
    client = make(max_texts=2)
    texts = ["band", "x", "city", "fail", "band"]
    with pytest.raises(ValueError, match=r"^texts\[3\]: texts: expected a text that does not fail") as caught:
        client.entities(texts, LABELS)
    assert caught.value.index == 3
    answers = client.entities(texts, LABELS, return_errors=True)
    assert [type(answer) for answer in answers] == [Entities, Entities, Entities, RefusedError, Entities]
    assert answers[3].index == 3 and answers[3].status == 422 and answers[3].field == "texts"


def test_a_refusal_has_the_servers_words(make):
    client = make()
    error = {"status": 422, "field": "threshold", "expected": "a probability", "got": "2", "message": "threshold: no"}
    client.stub.script = [Answer(422, {"error": error})]
    with pytest.raises(ValueError) as caught:
        client.entities(TEXT, LABELS, threshold=0.5)
    raised = caught.value
    assert isinstance(raised, ServerError) and str(raised) == raised.message == "threshold: no"
    assert (raised.status, raised.field, raised.expected, raised.got) == (422, "threshold", "a probability", "2")
    assert (raised.index, raised.request_id) == (None, "r1")
    copy = pickle.loads(pickle.dumps(raised))
    assert type(copy) is RefusedError and vars(copy) == vars(raised) and str(copy) == str(raised)


def test_indices_of_texts_are_the_callers(make):
    client = make(max_texts=2)

    class Refusing(Stub):
        def answer(self, path, headers, body):
            texts = json.loads(body)["texts"]
            if "bad" in texts:
                where = f"texts[{texts.index('bad')}]"
                return refusal(422, where, f"{where}: expected another text")
            return super().answer(path, headers, body)

    client = make(Refusing(), max_texts=2)
    with pytest.raises(RefusedError, match=r"^texts\[3\]: expected another text$") as caught:
        client.entities(["a", "b", "c", "bad"], LABELS)
    assert caught.value.field == "texts[3]" and caught.value.index is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedError), (401, NotAuthorizedError), (404, ServerError), (405, ServerError),
        (408, ServerTimeoutError), (413, RefusedError), (415, ServerError), (422, RefusedError), (500, ServerError),
        (429, ServerBusyError), (503, ServerBusyError),
    ],
)  # fmt: skip
def test_each_status_has_its_kind(make, status, kind):
    client = make(retries=0)
    client.stub.script = [refusal(status, message="why", Retry_After="7")]
    with pytest.raises(ServerError, match="^why$") as caught:
        client.entities(TEXT, LABELS)
    assert type(caught.value) is kind and caught.value.status == status
    assert caught.value.retry_after == 7.0 and client.waits == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>", {"Content-Type": "text/html"}),
        Answer(200, b"\xff"),
        Answer(200, []),
        Answer(200, {"entities": [], "windows": 1}),
        Answer(200, {"entities": [{"start": "x", "end": 2, "score": 1}], "windows": 1, "words_cut": 0, "warnings": []}),
        Answer(200, {"entities": [7], "windows": 1, "words_cut": 0, "warnings": []}),
        Answer(302, b"", {"Location": "http://elsewhere.test/"}),
        Answer(502, b"bad gateway"),
        Answer(404, {"error": "no"}),
    ],
)
def test_other_answers_are_unreadable(make, answer):
    client = make()
    client.stub.script = [answer]
    with pytest.raises(UnreadableAnswerError, match=r"^url: expected an answer of glimodern.serve") as caught:
        client.entities(TEXT, LABELS)
    assert caught.value.status == answer.status and len(client.bodies()) == 1


def test_a_wrong_number_of_results_is_unreadable(make):
    client = make()
    client.stub.script = [Answer(200, {"results": [], "warnings": []})]
    with pytest.raises(UnreadableAnswerError, match="0 results for 2 texts"):
        client.entities(["a", "b"], LABELS)


def test_warnings_of_the_server_are_given_once(make):
    client = make(max_texts=1)
    with pytest.warns(UserWarning) as caught:
        answers = client.entities(["cut", "cut cut"], LABELS)
    assert [str(warning.message) for warning in caught] == ["words at the ends were not read"]
    assert [answer.words_cut for answer in answers] == [1, 2] and answers[0].truncated


def test_a_warning_points_to_the_caller():
    client = Both("blocking", Stub())
    with pytest.warns(UserWarning) as caught:
        client.client.entities(["cut"], LABELS)
    assert caught[0].filename == __file__


# --- waiting -----------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(make):
    client = make()
    client.stub.script = [refusal(503, Retry_After="3"), refusal(429, Retry_After="0"), refusal(429)]
    assert client.entities(TEXT, LABELS) == FOUND
    assert client.waits == [3 + 0.5 * 0.5, 0.5 * 1.0, 0.5 * 2.0]  # what was asked, and half of 0.5, 1 and 2 s


def test_waits_are_capped(make):
    client = make(retries=7, max_wait=4.0)
    client.stub.script = [refusal(429)] * 7
    assert client.entities(TEXT, LABELS) == FOUND
    assert client.waits == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_repeats_end(make):
    client = make(retries=2)
    client.stub.script = [refusal(429, message="busy", Retry_After="1")] * 3
    with pytest.raises(ServerBusyError, match="^busy$") as caught:
        client.entities(TEXT, LABELS)
    assert len(client.bodies()) == 3 and len(client.waits) == 2 and caught.value.retry_after == 1.0


def test_a_longer_wait_than_allowed_is_not_waited(make):
    client = make(max_wait=5.0)
    client.stub.script = [refusal(503, Retry_After="6")]
    with pytest.raises(ServerBusyError) as caught:
        client.entities(TEXT, LABELS)
    assert caught.value.retry_after == 6.0 and client.waits == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "Mon, 30 Nov 2026 12:00:09 GMT", "Date": "Mon, 30 Nov 2026 12:00:00 GMT"}, 9.0),
        ({"Retry_After": "Mon, 30 Nov 2026 11:00:00 GMT", "Date": "Mon, 30 Nov 2026 12:00:00 GMT"}, 0.0),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "-1"}, None),
        ({"Retry_After": "²"}, None),
        ({}, None),
    ],
)
def test_retry_after(make, headers, seconds):
    client = make(retries=0)
    answer = refusal(429)
    headers = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
    client.stub.script = [answer._replace(headers=headers)]
    with pytest.raises(ServerBusyError) as caught:
        client.entities(TEXT, LABELS)
    assert caught.value.retry_after == seconds


def test_a_date_without_the_servers_clock(make):
    client = make(retries=0)
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    client.stub.script = [refusal(429, Retry_After=email.utils.format_datetime(later, usegmt=True))]
    with pytest.raises(ServerBusyError) as caught:
        client.entities(TEXT, LABELS)
    assert 0 < caught.value.retry_after <= 3600


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ConnectTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
    ],
)  # fmt: skip
def test_failed_connections_are_repeated(make, error):
    client = make(retries=2)
    client.outcomes = [error]
    assert client.entities(TEXT, LABELS) == FOUND and client.waits == [0.25]
    client.outcomes = [error] * 3
    with pytest.raises(ConnectionError, match=rf"^url: expected a server at {URL}, got no connection") as caught:
        client.entities(TEXT, LABELS)
    assert isinstance(caught.value, UnreachableError) and caught.value.status is None
    assert caught.value.__cause__ is error


def test_an_answer_that_is_late_is_not_asked_for_again(make):
    client = make()
    client.outcomes = [httpx.ReadTimeout("late")]
    with pytest.raises(TimeoutError, match="^timeout: expected an answer .* in time") as caught:
        client.entities(TEXT, LABELS)
    assert isinstance(caught.value, ServerTimeoutError) and client.waits == []


def test_a_request_that_the_server_gave_up_is_not_sent_again(make):
    client = make()
    client.stub.script = [refusal(503, "timeout", "timeout: expected an answer within 2 s, got none", Retry_After="1")]
    with pytest.raises(TimeoutError, match="^timeout: expected an answer within 2 s") as caught:
        client.entities(TEXT, LABELS, timeout=2)
    assert isinstance(caught.value, ServerTimeoutError) and client.waits == []


def test_a_call_waits_as_long_as_its_server_may_take():
    seen = []

    def handle(request):
        seen.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json={"entities": [], "windows": 0, "words_cut": 0, "warnings": []})

    with Client(URL, timeout=90, transport=httpx.MockTransport(handle)) as client:
        client.entities("", LABELS)
        client.entities("", LABELS, timeout=100)
    assert seen[0] == 90 and seen[1] > 100


def test_a_clients_random_numbers_differ_and_leave_the_programs_alone():
    import random

    before = random.getstate()
    waits = []
    for _ in range(2):
        stub = Stub()
        stub.script = [refusal(429)] * 3
        both = Both("blocking", stub, random=None)
        both.entities(TEXT, LABELS)
        waits += both.waits
    assert len(set(waits)) == 6 and random.getstate() == before
    assert all(0 <= wait < bound for wait, bound in zip(waits, [0.5, 1, 2] * 2, strict=True))


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (TEXT, LABELS),
            {"treshold": 1},
            TypeError,
            "entities: unexpected keyword argument .*mean threshold",
        ),
        ((TEXT, LABELS), {"style": "mask"}, TypeError, "entities: unexpected keyword argument 'style'"),
        ((TEXT, "band"), {}, TypeError, "labels: expected an iterable of strings"),
        ((TEXT, [""]), {}, ValueError, r"labels\[0\]: expected a name"),
        ((7, LABELS), {}, TypeError, "texts: expected a string or an iterable of strings, got int 7"),
        ((["a", b"b"], LABELS), {}, TypeError, r"texts\[1\]: expected a string, got bytes"),
        (("\ud800", LABELS), {}, ValueError, "texts: expected Unicode text"),
        ((TEXT, LABELS), {"threshold": 2}, ValueError, "threshold: expected a probability"),
        ((TEXT, LABELS), {"threshold": "best"}, TypeError, "threshold: expected a probability"),
        ((["a", "b"], [["x"]]), {}, ValueError, r"labels: expected one label set per text \(2\), got 1"),
        ((["a", "b"], LABELS), {"threshold": [0.5]}, ValueError, "threshold: expected one threshold per text"),
        ((TEXT, LABELS), {"flat": 1}, TypeError, "flat: expected True or False"),
        ((TEXT, LABELS), {"top_k": 1.5}, TypeError, "top_k: expected a whole number"),
        ((TEXT, LABELS), {"model": None}, TypeError, "model: expected a string"),
        ((TEXT, LABELS), {"timeout": 0}, ValueError, "timeout: expected a finite number of seconds above 0"),
        ((TEXT, LABELS), {"timeout": "5"}, TypeError, "timeout: expected a number of seconds"),
        ((TEXT, LABELS), {"return_errors": 1}, TypeError, "return_errors: expected True or False"),
    ],
)
def test_wrong_arguments_send_nothing(make, arguments, options, error, message):
    client = make()
    with pytest.raises(error, match=message):
        client.entities(*arguments, **options)
    assert client.bodies() == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"url": "127.0.0.1:8000"}, ValueError, "url: expected an address"),
        ({"url": "ftp://a"}, ValueError, "url: expected an address"),
        ({"url": "http://"}, ValueError, "url: expected an address"),
        ({"url": "http://a/?x=1"}, ValueError, "url: expected an address"),
        ({"url": "http://a:b"}, ValueError, "url: expected an address"),
        ({"url": None}, TypeError, "url: expected a string"),
        ({"token": 7}, TypeError, "token: expected a string"),
        ({"timeout": -1}, ValueError, "timeout: "),
        ({"retries": -1}, ValueError, "retries: "),
        ({"max_wait": float("nan")}, ValueError, "max_wait: "),
        ({"max_texts": 0}, ValueError, "max_texts: "),
        ({"max_bytes": 0}, ValueError, "max_bytes: "),
    ],
)
def test_wrong_settings(kind, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kind(**{"url": URL, **options})


def test_concurrency_is_checked():
    with pytest.raises(ValueError, match="^concurrency: "):
        AsyncClient(URL, concurrency=0)


# --- the token ---------------------------------------------------------------------------------------------------


def test_the_token_is_sent(make, monkeypatch):
    client = make(Stub(token="s3cret"), token="s3cret\n")
    assert client.entities(TEXT, LABELS) == FOUND
    monkeypatch.setenv("GLIMODERN_TOKEN", "s3cret")
    assert make(Stub(token="s3cret")).entities(TEXT, LABELS) == FOUND
    with pytest.raises(NotAuthorizedError):
        make(Stub(token="s3cret"), token="another").entities(TEXT, LABELS)


def test_the_token_shows_nowhere(make, caplog):
    caplog.set_level(logging.DEBUG)
    client = make(Stub(token="other"), token="s3cret")
    with pytest.raises(NotAuthorizedError) as caught:
        client.entities(TEXT, LABELS)
    client.outcomes = [httpx.ReadTimeout("late")]
    with pytest.raises(ServerTimeoutError) as late:
        client.entities(TEXT, LABELS)
    shown = [repr(client.client), caplog.text, *map(repr, (caught.value, late.value))]
    shown += ["".join(traceback.format_exception(error.value)) for error in (caught, late)]
    assert "s3cret" not in "".join(shown)
    assert client.stub.headers[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("token", ["", "two s3cret", "s3crét", "s3cret\x00"])
def test_a_token_that_cannot_be_sent_is_not_shown(token):
    with pytest.raises(ValueError, match="^token: expected ASCII characters") as caught:
        Client(URL, token=token)
    assert "s3cr" not in str(caught.value)


def test_a_password_in_the_address_is_refused_unshown():
    with pytest.raises(ValueError, match="^url: .*give a token") as caught:
        Client("http://me:s3cret@host")
    assert "s3cret" not in str(caught.value)


def test_the_environment_sends_no_token_elsewhere(monkeypatch):
    """A proxy of the environment is not used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(Stub()) as stub, Client(stub.url, retries=0) as client:
        assert client.entities(TEXT, LABELS) == FOUND


# --- real connections --------------------------------------------------------------------------------------------


def test_over_loopback():
    with serving(Stub(token="s3cret")) as stub:
        with Client(stub.url, token="s3cret", max_texts=2) as client:
            assert client.ready() and [model.name for model in client.models()] == ["small", "large"]
            assert client.entities([TEXT] * 5, LABELS) == [FOUND] * 5
            assert client.redact("a band", LABELS).text == "a [BAND_1]"
            assert len(stub.requests) == 6
        with pytest.raises(NotAuthorizedError, match="^token: "), Client(stub.url, token="x") as client:
            client.models()
    with Client(stub.url, retries=1, sleep=lambda seconds: None) as client:
        assert not client.ready()
        with pytest.raises(UnreachableError):
            client.models()


def test_over_loopback_with_asyncio():
    async def run(url):
        async with AsyncClient(url, max_texts=1) as client:
            return await client.ready(), await client.entities([TEXT] * 9, LABELS), await client.models()

    with serving(Stub()) as stub:
        ready, answers, models = asyncio.run(run(stub.url))
    assert ready and answers == [FOUND] * 9 and len(models) == 2


def test_a_path_before_the_server_is_kept():
    asked = []

    def handle(request):
        asked.append(str(request.url))
        return httpx.Response(200, json={"models": []})

    for url in ("https://host.test/ner", "https://host.test/ner/"):
        with Client(url, transport=httpx.MockTransport(handle)) as client:
            client.models()
    assert asked == ["https://host.test/ner/v1/models"] * 2


def test_an_asgi_application_answers():
    pytest.importorskip("starlette", reason="needs the extra serve")
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def entities(request):
        answer = Stub().answer(request.url.path, request.headers, await request.body())
        return JSONResponse(answer.body, answer.status)

    application = Starlette(routes=[Route("/v1/entities", entities, methods=["POST"])])

    async def run():
        async with AsyncClient(URL, transport=httpx.ASGITransport(application)) as client:
            return await client.entities([TEXT, TEXT], LABELS)

    assert asyncio.run(run()) == [FOUND, FOUND]


def test_cancelling_a_call_ends_its_requests():
    async def run():
        started = asyncio.Event()

        async def handle(request):
            started.set()
            await asyncio.Event().wait()

        async with AsyncClient(URL, max_texts=1, transport=httpx.MockTransport(handle)) as client:
            call = asyncio.create_task(client.entities(["a"] * 9, LABELS))
            await started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_importing_the_client_imports_no_torch():
    program = "import sys, glimodern.client; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_call_warns_of_nothing_by_itself(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make().entities(TEXT, LABELS) == FOUND
