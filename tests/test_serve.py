"""The server's answers: entities, redactions, errors that name the field, limits, metrics, OpenAPI."""

import asyncio
import json
import logging
import warnings

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extra client")
pytest.importorskip("starlette", reason="needs the extra serve")

from glimodern.inference.redaction import redact  # noqa: E402
from glimodern.serve.app import App  # noqa: E402
from glimodern.serve.body import Limits  # noqa: E402
from glimodern.serve.logs import configure_logs  # noqa: E402
from glimodern.serve.metrics import Metrics  # noqa: E402
from glimodern.serve.openapi import openapi  # noqa: E402
from glimodern.serve.service import Service  # noqa: E402
from tests.conftest import WORDS, clear_threshold  # noqa: E402
from tests.served import SECONDS, Gate, save_served, served_model  # noqa: E402

LABELS = ["person", "place", "machine"]
TEXT = " ".join(WORDS)
LONG = " ".join(WORDS * 12)
TEXTS = [TEXT, "Ada met Charles .", "", "London \U0001f600 \u00e9 \u05d0", LONG]
LIMITS = Limits(max_body=20_000, max_texts=6, max_words=300, max_labels=30, max_label_length=50, timeout=30.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served_model(save_served(tmp_path_factory.mktemp("serve") / "model"))


@pytest.fixture(scope="module")
def threshold(model):
    return clear_threshold(model, TEXTS, LABELS)


def make_app(models, *, token=None, hosts=None, limits=LIMITS, load=True, **options):
    metrics = Metrics()
    options = {"warm": False, "max_delay": 30.0, "max_calls": 1024, "pseudonym_key": b"k" * 32, **options}
    service = Service(
        {name: lambda model=model: model for name, model in models.items()}, on_batch=metrics.add_batch, **options
    )
    if load:
        service.load()
    return App(service, limits, metrics, token=token, hosts=hosts)


@pytest.fixture(scope="module")
def app(model):
    app = make_app({"first": model, "second": model})
    yield app
    app.service.close()


async def send(app, requests):
    """Send (method, path, options) at the same time."""
    transport = httpx.ASGITransport(app=app.asgi, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SECONDS) as client:
        return await asyncio.gather(*(client.request(method, path, **how) for method, path, how in requests))


def ask(app, method, path, **how):
    (answer,) = asyncio.run(send(app, [(method, path, how)]))
    return answer


def post(app, body, path="/v1/entities"):
    return ask(app, "POST", path, json=body)


def quiet(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


CALLS = [
    {},
    {"flat": False, "multi_label": True},
    {"top_k": 2},
    {"long_texts": "cut"},
    {"window": 20, "context": 2},
    {"window": "sentence"},
    {"labels_per_prompt": 1},
    {"labels": {"person": "machine", "town": "a place"}},
    {"labels": [f"label {i}" for i in range(20)]},
    {"threshold": {"place": 0.1, "*": 0.6}},
    {"threshold": None, "top_k": None},
]


def test_concurrent_requests_have_the_results_of_predict_bit_for_bit(app, model, threshold):
    requests, wanted = [], []
    for options in CALLS:
        options = {"threshold": threshold, "labels": LABELS, **options}
        given = {name: value for name, value in options.items() if value is not None}
        wanted.append(quiet(model.predict, TEXTS, **given))
        requests.append(("POST", "/v1/entities", {"json": {"texts": TEXTS, **options}}))
        requests += [("POST", "/v1/entities", {"json": {"text": text, **options}}) for text in TEXTS]
    answers = asyncio.run(send(app, requests))
    assert {answer.status_code for answer in answers} == {200}
    assert any(entities for result in wanted for entities in result)
    for number, results in enumerate(wanted):
        together, *alone = answers[number * (len(TEXTS) + 1) :][: len(TEXTS) + 1]
        value = together.json()
        assert set(value) == {"model", "warnings", "results"}
        for result, entities, one in zip(value["results"], results, alone, strict=True):
            read = {"windows": entities.windows, "words_cut": entities.words_cut}
            assert result == {"entities": list(entities), **read}
            assert {**result, "model": "first", "warnings": []} == {**one.json(), "warnings": []}


def test_labels_and_thresholds_of_each_text(app, model, threshold):
    labels, thresholds = [LABELS, ["place"], {"x": "machine"}], [threshold, 0.5, {"*": 0.3}]
    answer = post(app, {"texts": TEXTS[:3], "labels": labels, "threshold": thresholds})
    wanted = model.predict(TEXTS[:3], labels, thresholds)
    assert [result["entities"] for result in answer.json()["results"]] == [list(entities) for entities in wanted]


def test_warnings_are_in_the_answer(app, model):
    with pytest.warns(UserWarning) as wanted:
        model.predict(LONG, LABELS, long_texts="cut")
    answer = post(app, {"text": LONG, "labels": LABELS, "long_texts": "cut"}).json()
    assert answer["warnings"] == [str(warning.message) for warning in wanted]
    assert answer["words_cut"] > 0


@pytest.mark.parametrize("style", ["placeholder", "mask", "pseudonym"])
def test_redaction_replaces_the_entities_of_predict(app, model, threshold, style):
    answer = post(app, {"texts": TEXTS, "labels": LABELS, "threshold": threshold, "style": style}, "/v1/redact").json()
    found = model.predict(TEXTS, LABELS, threshold)
    assert any(found)
    for result, text, entities in zip(answer["results"], TEXTS, found, strict=True):
        assert (result["text"], result["entities"]) == tuple(redact(text, entities, style, key=b"k" * 32))
        for entity in result["entities"]:
            assert result["text"][entity["redacted_start"] : entity["redacted_end"]] == entity["replacement"]
            assert text[entity["start"] : entity["end"]] == entity["text"]
    one = post(app, {"text": TEXT, "labels": LABELS, "threshold": threshold, "style": style}, "/v1/redact").json()
    assert one["text"] == answer["results"][0]["text"]


OK = {"text": TEXT, "labels": LABELS}
TOO_MANY = ("at most 6 texts", "at most 30 labels")
FAULTS = [
    ({}, "text", "either text or texts", "neither"),
    ({**OK, "texts": [TEXT]}, "text", "either text or texts", "both"),
    ({**OK, "text": 3}, "text", "a string", "3"),
    ({**OK, "text": None}, "text", "either text or texts", "neither"),
    ({**OK, "text": [TEXT]}, "text", "a string", "a list of 1"),
    ({**OK, "text": "a \ud800 b"}, "text", "Unicode text", "a lone surrogate '\\ud800' at character 2"),
    ({"texts": "a", "labels": LABELS}, "texts", "a list of strings", "the string 'a'"),
    ({"texts": {"a": 1}, "labels": LABELS}, "texts", "a list of strings", "an object"),
    ({"texts": ["a", None], "labels": LABELS}, "texts[1]", "a string", "null"),
    ({"texts": ["a", "\udfff"], "labels": LABELS}, "texts[1]", "Unicode text", "a lone surrogate '\\udfff' at charact"),
    ({"texts": ["a"] * 7, "labels": LABELS}, "texts", "at most 6 texts", "7"),
    ({**OK, "text": "a " * 301}, "text", "at most 300 words", "301"),
    ({"text": TEXT}, "labels", "a list of labels, or an object {label: description}", "null"),
    ({**OK, "labels": "person"}, "labels", "a list of labels, or an object", "the string 'person'"),
    ({**OK, "labels": [1]}, "labels[0]", "a string", "int 1"),
    ({**OK, "labels": ["a", ""]}, "labels[1]", "a name such as 'person'", "an empty string"),
    ({**OK, "labels": ["a" * 51]}, "labels[0]", "at most 50 characters", "51"),
    ({**OK, "labels": {"a": "b" * 51}}, "labels: key 0", "at most 50 characters", "51"),
    ({**OK, "labels": {"a": 1}}, "labels['a']", "a string", "int 1"),
    ({**OK, "labels": [f"l{i}" for i in range(31)]}, "labels", "at most 30 labels", "31"),
    ({**OK, "labels": [["a"], "b"]}, "labels[1]", "a list of labels, as for the other texts", "the string 'b'"),
    ({"texts": ["a", "b"], "labels": [["a"]]}, "labels", "one label set per text (2)", "1"),
    ({**OK, "threshold": 2}, "threshold", "a probability in [0, 1]", "2.0"),
    ({**OK, "threshold": 10**400}, "threshold", "a probability in [0, 1]", "1000"),
    ({**OK, "threshold": "0.5"}, "threshold", None, None),
    ({**OK, "threshold": "calibrated"}, "threshold", None, None),
    ({**OK, "threshold": {"person": 0.5}}, "threshold", None, None),
    ({**OK, "threshold": True}, "threshold", None, None),
    ({**OK, "flat": 1}, "flat", "True or False", "int 1"),
    ({**OK, "multi_label": "yes"}, "multi_label", "True or False", "str 'yes'"),
    ({**OK, "top_k": 0}, "top_k", "a number of entities of at least 1", "0"),
    ({**OK, "top_k": 1.5}, "top_k", "a number of entities", "float 1.5"),
    ({**OK, "long_texts": "drop"}, "long_texts", "one of windows, cut, error", "'drop'"),
    ({**OK, "window": 0}, "window", None, None),
    ({**OK, "window": 20, "long_texts": "cut"}, "window", None, None),
    ({**OK, "labels_per_prompt": 0}, "labels_per_prompt", None, None),
    ({**OK, "text": LONG, "long_texts": "error"}, "text", None, None),
    ({**OK, "timeout": 0}, "timeout", "seconds > 0 and <= 30", "0"),
    ({**OK, "timeout": 31}, "timeout", "seconds > 0 and <= 30", "31"),
    ({**OK, "timeout": "1"}, "timeout", "seconds > 0 and <= 30", "the string '1'"),
    ({**OK, "model": "third"}, "model", "one of first, second", '"third"'),
    ({**OK, "model": "../../etc/passwd"}, "model", "one of first, second", '"../../etc/passwd"'),
    ({**OK, "model": "\ud800"}, "model", "one of first, second", '"\\ud800"'),
    ({**OK, "model": 1}, "model", "a string", "1"),
    ({**OK, "treshold": 0.5}, "treshold", "a known field", "an unknown one"),
    ({**OK, "spans": []}, "spans", "a known field", "an unknown one"),
    ({**OK, "style": "mask"}, "style", "a known field", "an unknown one"),
]


@pytest.mark.parametrize(("body", "field", "expected", "got"), FAULTS)
def test_an_error_names_the_field_what_is_wanted_and_what_was_got(app, body, field, expected, got):
    answer = ask(app, "POST", "/v1/entities", content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == error["status"] == (413 if expected in TOO_MANY else 422)
    assert error["field"] == field
    assert error["message"].startswith(f"{field}: ")
    if expected is not None:
        assert error["expected"].startswith(expected)
        assert error["got"].startswith(got)
    assert error["message"].startswith(f"{field}: expected {error['expected']}, got {error['got']}")
    assert "Traceback" not in answer.text and "/work" not in answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'"text"', 400), (b"\xff\xfe", 400),
        (b'{"text": "a", "text": "b"}', 400), (b"[" * 10_000, 400), (b'{"a":' * 3000, 400),
        (b'{"text": "a", "labels": ["x"]} {}', 400), (b'{"text": "a", "labels": ["x"], "threshold": NaN}', 422),
        (b'{"text": "a", "labels": ["x"], "threshold": 1e999}', 422), (b"1" * 5000, 400),
        (b'{"text": "' + b"a" * 20_000 + b'", "labels": ["x"]}', 413),
    ],
)  # fmt: skip
def test_broken_bodies(app, content, status):
    answer = ask(app, "POST", "/v1/entities", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == answer.json()["error"]["status"] == status


@pytest.mark.parametrize("name", ["flat", "multi_label", "top_k", "long_texts"])
def test_a_redaction_that_would_leave_entities_is_refused(app, name):
    value = {"flat": False, "multi_label": True, "top_k": 3, "long_texts": "cut"}[name]
    answer = post(app, {**OK, name: value}, "/v1/redact")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == name
    style = post(app, {**OK, "style": "blur"}, "/v1/redact").json()["error"]
    assert (style["field"], style["expected"]) == ("style", "one of placeholder, mask, pseudonym")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/entities/", 404), ("GET", "/v1/../v1/models/x", 404),
        ("GET", "/v1/entities", 405), ("POST", "/healthz", 405), ("DELETE", "/v1/entities", 405),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404), ("GET", "/healthz", 200), ("HEAD", "/healthz", 200),
    ],
)  # fmt: skip
def test_paths_and_methods(app, method, path, status):
    answer = ask(app, method, path)
    assert answer.status_code == status
    if status > 400 and method != "HEAD":
        assert answer.json()["error"]["status"] == status
    if status == 405:
        assert answer.headers["allow"]


def test_other_content_types_are_refused(app):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = ask(app, "POST", "/v1/entities", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415
        assert answer.json()["error"]["field"] == "content-type"
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert ask(app, "POST", "/v1/entities", content=json.dumps(OK), headers=kind).status_code == 200


def test_models_and_status(app, model):
    models = ask(app, "GET", "/v1/models").json()["models"]
    assert [(m["name"], m["default"]) for m in models] == [("first", True), ("second", False)]
    assert models[0] == {
        "name": "first", "default": True, "dtype": "fp32", "max_words": 48, "max_width": 6, "max_types": 8,
        "calibrated": False, "adapters": [],
    }  # fmt: skip
    assert post(app, {**OK, "model": "second"}).json()["model"] == "second"
    assert ask(app, "GET", "/healthz").json() == {"status": "ok"}
    assert ask(app, "GET", "/readyz").json() == {"status": "ready"}


def test_a_server_that_loads_or_drains_is_alive_but_not_ready(model):
    app = make_app({"first": model}, load=False)
    assert ask(app, "GET", "/healthz").status_code == 200
    assert (ask(app, "GET", "/readyz").status_code, ask(app, "GET", "/readyz").json()) == (503, {"status": "loading"})
    for answer in (post(app, OK), ask(app, "GET", "/v1/models")):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    app.service.load()
    assert ask(app, "GET", "/readyz").status_code == 200
    app.service.drain()
    assert ask(app, "GET", "/readyz").json() == {"status": "draining"}
    assert post(app, OK).status_code == 503
    app.service.close()


def test_a_server_that_drains_loads_no_more_models(model):
    app = make_app({}, load=False)

    def load():
        app.service.drain()
        return model

    app.service._load = {"first": load, "second": lambda: 1 / 0}
    app.service._warm = True
    app.service.load()
    assert (list(app.service.models), app.service.status) == (["first"], "draining")
    assert not app.service.engine._cost.known


def test_warming_measures_the_pace(model):
    app = make_app({"first": model}, warm=True)
    assert app.service.engine._cost.known
    app.service.close()


def test_a_token_is_asked_for_and_compared_whole(model):
    app = make_app({"first": model}, token="secret")
    for value in ("", "Bearer", "Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer s\u00e9cret"):
        answer = ask(app, "POST", "/v1/entities", json=OK, headers={"authorization": value.encode()})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "secret" not in answer.text
    for path in ("/v1/models", "/metrics"):
        assert ask(app, "GET", path).status_code == 401
        assert ask(app, "GET", path, headers={"authorization": "Bearer secret"}).status_code == 200
        assert ask(app, "GET", path, headers={"authorization": "bearer secret"}).status_code == 200
    for path in ("/healthz", "/readyz", "/", "/openapi.json"):
        assert ask(app, "GET", path).status_code == 200
    app.service.close()


def test_request_ids(app):
    given = ask(app, "GET", "/healthz", headers={"x-request-id": "a-1:b.c_d"}).headers["x-request-id"]
    assert given == "a-1:b.c_d"
    for bad in ("a b", "x" * 200, "a\u00e9", 'a"b'):
        made = ask(app, "GET", "/healthz", headers={"x-request-id": bad.encode()}).headers["x-request-id"]
        assert made != bad and len(made) == 16


def test_a_full_queue_answers_429_with_retry_after_and_a_timeout_503(model, monkeypatch):
    app = make_app({"first": model}, max_calls=2)
    gate = Gate(monkeypatch, model)

    async def go():
        transport = httpx.ASGITransport(app=app.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SECONDS) as client:
            taken = [asyncio.ensure_future(client.post("/v1/entities", json=OK)) for _ in range(2)]
            assert await asyncio.to_thread(gate.reached.wait, SECONDS)
            while app.service.engine.queued_calls < 2:
                await asyncio.sleep(0)
            full = await client.post("/v1/entities", json=OK)
            gate.open.set()
            answered = await asyncio.gather(*taken)
            gate.open.clear()
            late = await client.post("/v1/entities", json={**OK, "timeout": 0.01})
            left = app.service.engine.queued_calls
            gate.open.set()
            return full, answered, late, left

    full, answered, late, left = asyncio.run(go())
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answered] == [200, 200]
    assert late.status_code == 503
    assert late.json()["error"]["field"] == "timeout"
    assert left == 0
    app.service.close()


def test_an_answer_with_too_many_entities_is_refused(model):
    app = make_app({"first": model}, limits=Limits(max_entities=100))
    body = {"texts": TEXTS, "labels": LABELS, "threshold": 0.0, "flat": False, "multi_label": True}
    for path, given in (
        ("/v1/entities", body),
        ("/v1/redact", {"text": TEXT * 12, "labels": LABELS, "threshold": 0.0}),
    ):
        error = post(app, given, path).json()["error"]
        assert (error["status"], error["field"], error["expected"]) == (413, "threshold", "at most 100 entities")
        assert int(error["got"]) > 100
    assert post(app, {**body, "top_k": 10}).status_code == 200
    app.service.close()


def test_a_host_of_another_name_is_refused_on_loopback(model):
    """A page of another site whose name was pointed at this machine sends its own name as Host."""
    app = make_app({"first": model}, hosts=("localhost", "127.0.0.1", "::1", "My.Name"))
    for host, status in (
        ("localhost", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200),
        ("my.name", 200), ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421),
        ("127.0.0.1@evil", 421),
    ):  # fmt: skip
        answer = ask(app, "POST", "/v1/entities", json=OK, headers={"host": host})
        assert answer.status_code == status, host
        assert ask(app, "GET", "/", headers={"host": host}).status_code == status
        assert ask(app, "GET", "/healthz", headers={"host": host}).status_code == 200
    assert "--allow-host" in answer.json()["error"]["message"]
    app.service.close()


def test_a_text_that_fails_fails_alone(model, monkeypatch):
    app = make_app({"first": model})
    candidates = model._candidates

    def fail(batch, threshold, label_vectors=None):
        if int(batch.cu_seqlens[-1]) > 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if int(batch.cu_seqlens[-1]) < 12:
            raise ZeroDivisionError("a secret text")
        return candidates(batch, threshold, label_vectors=label_vectors)

    monkeypatch.setattr(model, "_candidates", fail)
    texts = ["Ada met Charles Babbage in London .", " ".join(WORDS * 3), "Ada"]
    results = post(app, {"texts": texts, "labels": LABELS, "long_texts": "cut"}).json()["results"]
    assert [result.get("error", {}).get("status") for result in results] == [None, 413, 500]
    assert "secret" not in json.dumps(results)
    results = post(app, {"texts": [TEXT, "a " * 301], "labels": LABELS}).json()["results"]
    assert "entities" in results[0]
    assert (results[1]["error"]["field"], results[1]["error"]["got"]) == ("texts[1]", "301")
    long = {"texts": [TEXT, LONG], "labels": LABELS, "long_texts": "error", "labels_per_prompt": 3}
    results = post(app, long).json()["results"]
    assert results[1]["error"]["field"] == "texts[1]"
    assert post(app, {"text": "Ada", "labels": LABELS}).status_code == 500
    app.service.close()


def test_an_internal_error_tells_nothing_and_logs_no_text(model, monkeypatch, capsys):
    app = make_app({"first": model})
    monkeypatch.setattr(app.service, "_result", lambda *a, **k: 1 / 0)
    before = {name: logging.getLogger(name).handlers for name in ("glimodern", "uvicorn", "py.warnings")}
    try:
        configure_logs("json", "info")
        answer = ask(app, "POST", "/v1/entities", json={**OK, "text": "Geheimnis"}, headers={"x-request-id": "seven"})
    finally:
        logging.captureWarnings(False)
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers
            logging.getLogger(name).propagate = True
            logging.getLogger(name).setLevel(logging.NOTSET)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error; see the server's log, request id seven"
    error, request = map(json.loads, capsys.readouterr().err.splitlines())
    assert (error["exception"], error["request_id"]) == ("ZeroDivisionError", "seven")
    assert "app.py" in error["traceback"][0] or "access.py" in error["traceback"][0]
    assert (request["event"], request["path"], request["status"]) == ("request", "/v1/entities", 500)
    assert "Geheimnis" not in json.dumps([error, request]) and "person" not in json.dumps([error, request])
    app.service.close()


def receiver(messages):
    """Return a receive function that gives messages, then waits for ever."""
    rest = iter(messages)

    async def receive():
        for message in rest:
            return message
        await asyncio.Event().wait()

    return receive


def call(app, messages, headers=()):
    """Call the application without a client; return the messages that it sends."""
    sent = []
    scope = {
        "type": "http", "method": "POST", "path": "/v1/entities", "query_string": b"", "client": ("127.0.0.1", 1),
        "headers": [(b"content-type", b"application/json"), *headers], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(app.asgi(scope, receiver(messages), send), SECONDS))
    return sent


def part(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_of_many_parts_is_read_within_its_limits(app):
    content = json.dumps(OK).encode()
    parts = [part(content[i : i + 1]) for i in range(len(content))]
    assert call(app, [*parts, part(b"", more=False)])[0]["status"] == 200
    large = call(app, [part(b" " * 1000)] * 200)
    assert large[0]["status"] == 413
    assert (b"connection", b"close") in large[0]["headers"]
    seen = call(app, [*[part(b" " * 1000)] * 50, part(b"", more=False)])
    assert (seen[0]["status"], json.loads(seen[1]["body"])["error"]["got"]) == (413, "50000")
    assert call(app, [], [(b"content-length", b"99999999999999999999999")])[0]["status"] == 413
    assert app._body_bytes == 0


def test_a_slow_body_is_given_up(model):
    limits = Limits(body_timeout=0.05)
    app = make_app({"first": model}, limits=limits)
    (start, body) = call(app, [part(b"{")])
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["got"] == "1 bytes by then"
    assert (b"connection", b"close") in start["headers"]
    app.service.close()


def test_too_many_bodies_at_a_time(app, monkeypatch):
    monkeypatch.setattr(app, "_body_bytes", 65 * LIMITS.max_body)
    (start, _) = call(app, [part(json.dumps(OK).encode(), more=False)])
    assert start["status"] == 429


def test_a_client_that_goes_away_costs_nothing_more(model, monkeypatch):
    app = make_app({"first": model})
    gone = {"type": "http.disconnect"}
    assert call(app, [part(b"{"), gone]) == []
    gate = Gate(monkeypatch, model)
    assert call(app, [part(json.dumps(OK).encode(), more=False), gone]) == []
    assert app.service.engine.queued_calls == 0
    gate.open.set()
    assert "glimodern_clients_gone_total 2.0" in ask(app, "GET", "/metrics").text
    assert app._body_bytes == 0
    app.service.close()


def test_metrics_count_requests_texts_and_batches(model, threshold):
    app = make_app({"first": model})
    found = model.predict(TEXTS, LABELS, threshold)
    post(app, {"texts": TEXTS, "labels": LABELS, "threshold": threshold})
    post(app, {"text": 3})
    ask(app, "GET", "/a/secret/path")
    app.service.engine.close()  # a batch is counted after its answers are given
    lines = ask(app, "GET", "/metrics").text.splitlines()
    entities = sum(map(len, found))
    for line in (
        'glimodern_requests_total{path="/v1/entities",status="200"} 1.0',
        'glimodern_requests_total{path="/v1/entities",status="422"} 1.0',
        'glimodern_requests_total{path="other",status="404"} 1.0',
        f'glimodern_texts_total{{model="first"}} {len(TEXTS)}.0',
        f'glimodern_entities_total{{model="first"}} {entities}.0',
        "glimodern_queue_requests 0.0",
        "glimodern_queue_tokens 0.0",
    ):
        assert line in lines
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    assert values["glimodern_batch_tokens_count"] >= 1
    assert values["glimodern_batch_tokens_sum"] == values["glimodern_tokens_total"] > 0
    assert values['glimodern_request_seconds_count{path="/v1/entities"}'] == 2
    assert not any("secret" in line for line in lines)
    app.service.close()


def test_the_openapi_description_is_valid_and_its_schemas_fit_the_answers(app, threshold):
    validator = pytest.importorskip("openapi_spec_validator", reason="needs the extra test")
    jsonschema = pytest.importorskip("jsonschema")
    description = ask(app, "GET", "/openapi.json").json()
    assert description == json.loads(json.dumps(openapi(LIMITS)))
    validator.validate(description)

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    body = {"labels": LABELS, "threshold": threshold}
    for path, names in (
        ("/v1/entities", ("Entities", "EntitiesOfTexts")),
        ("/v1/redact", ("Redaction", "RedactionOfTexts")),
    ):
        for name, given in zip(names, ({"text": TEXT}, {"texts": TEXTS}), strict=True):
            check("EntitiesRequest" if "Entities" in name else "RedactRequest", {**body, **given})
            check(name, post(app, {**body, **given}, path).json())
    check("Models", ask(app, "GET", "/v1/models").json())
    check("Error", post(app, {"text": 3}).json())
    check("Status", ask(app, "GET", "/readyz").json())
    with pytest.raises(jsonschema.ValidationError):
        check("EntitiesRequest", {"labels": LABELS})
    paths = {path for path in description["paths"]}
    assert paths == app.asgi.paths - {"/openapi.json"}


def test_the_page_allows_its_own_style_and_script_only(app):
    answer = ask(app, "GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == answer.text.count("<style>") + answer.text.count("<script>")
    for outside in ("http://", "https://", "//cdn", "@import", "url(http"):
        assert outside not in answer.text.replace("http://www.w3.org/", "")
