"""The Label Studio backend: label configs, predictions, and the HTTP protocol on the loopback."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from glimodern.data.convert.label_studio import Control, make_config, read_config
from glimodern.integrations.label_studio import LabelStudioBackend, make_backend_server
from glimodern.model.glimodern import GLiModern
from tests.conftest import clear_threshold
from tests.finder import Finder

CONFIG = """
<View>
  <Header value="Names"/>
  <Labels name="ner" toName="body">
    <Label value="person" background="red"/>
    <Label value="Ort" alias="place" hint="city or country"/>
  </Labels>
  <Choices name="mood" toName="body"><Choice value="good"/></Choices>
  <Text name="body" value="$content"/>
</View>
"""
LABELS = ["person", "place"]
TEXTS = ["Ada Lovelace met Charles Babbage in London .", "", "😀 Ada met Charles in London ."]


def tasks(texts=TEXTS, key="content"):
    return [{"id": index, "data": {key: text}} for index, text in enumerate(texts)]


def backend_of(finder, **options):
    backend = LabelStudioBackend("a model", **options)
    backend._model._model = finder
    return backend


# --- label configs -----------------------------------------------------------------------------------------------


def test_a_config_is_read():
    assert read_config(CONFIG) == [
        Control("ner", "body", "content", {"person": "person", "place": "city or country"}),
    ]


def test_several_controls_and_texts():
    config = (
        '<View><Labels name="a" toName="x, y"><Label value="A"/></Labels><Labels name="b" toName="y"><Label value="B"/>'
        '</Labels><Labels name="c" toName="sound"><Label value="C"/></Labels><Audio name="sound" value="$s"/>'
        '<Text name="x" value="$one"/><Text name="y" value="$two"/></View>'
    )
    assert [(one.from_name, one.to_name, one.key) for one in read_config(config)] == [
        ("a", "x", "one"),
        ("a", "y", "two"),
        ("b", "y", "two"),
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "label_config: expected the XML of a label config, got NoneType"),
        ("<View>", "label_config: expected the XML of a label config, got '<View>'"),
        ("<View/>", "label_config: expected <Labels"),
        (CONFIG.replace("Text", "HyperText"), "only plain text is read"),
        (CONFIG.replace('value="person"', ""), "expected a value=\"...\" in each Label of 'ner'"),
        (CONFIG.replace('value="$content"', 'value="$content" valueType="url"'), "import the texts into the tasks"),
        (CONFIG.replace("$content", "words"), 'expected value="\\$FIELD"'),
    ],
)
def test_a_config_is_refused(config, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read_config(config)


def test_a_config_is_made():
    labels = ["person", 'a "b" & <c>']
    assert read_config(make_config(labels)) == [Control("label", "text", "text", {label: label for label in labels})]


# --- predictions -------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_predict(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    model = GLiModern.from_pretrained(tmp_path / "model")
    described = {"person": "person", "place": "city or country"}
    threshold = clear_threshold(model, TEXTS, list(described.values()))
    backend = LabelStudioBackend(str(tmp_path / "model"), threshold)
    assert not backend._model.loaded
    answer = json.loads(json.dumps(backend.predict({"tasks": tasks(), "label_config": CONFIG})))
    wanted = model.predict(TEXTS, described, threshold)
    assert any(wanted)
    for text, entities, prediction in zip(TEXTS, wanted, answer["results"], strict=True):
        assert [(one["value"]["labels"], one["score"]) for one in prediction["result"]] == [
            ([entity["label"]], entity["score"]) for entity in entities
        ]
        for one in prediction["result"]:
            assert text[one["value"]["start"] : one["value"]["end"]] == one["value"]["text"]


def test_the_form_of_a_prediction():
    finder = Finder(("Ada", "person", 0.9), ("London", "place", 0.7))
    answer = backend_of(finder).predict({"tasks": tasks(), "label_config": CONFIG, "project": "1.2", "params": {}})
    assert answer["model_version"] == "a model" and len(answer["results"]) == 3
    assert answer["results"][1] == {"model_version": "a model", "result": []}
    last = answer["results"][2]
    assert last["score"] == pytest.approx(0.8)
    assert last["result"][0] == {
        "id": "entity-0",
        "from_name": "ner",
        "to_name": "body",
        "type": "labels",
        "value": {"start": 2, "end": 5, "text": "Ada", "labels": ["person"]},
        "score": 0.9,
    }
    assert [one["id"] for one in last["result"]] == ["entity-0", "entity-1"]
    assert [call[:2] for call in finder.calls] == [(TEXTS, {"person": "person", "place": "city or country"})]


def test_descriptions_and_thresholds():
    finder = Finder()
    backend = backend_of(finder, threshold={"place": 0.7, "city": 0.6, "*": 0.4}, descriptions={"place": "a location"})
    backend.predict({"tasks": tasks(), "label_config": CONFIG})
    assert finder.calls[0][1:] == ({"person": "person", "place": "a location"}, {"place": 0.7, "*": 0.4})


def test_label_studio_accepts_them():
    """Its own library checks predictions and annotations against the config."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs the package label-studio-sdk")
    finder = Finder(("Ada", "person", 0.9), ("London", "place", 0.7))
    answer = backend_of(finder).predict({"tasks": tasks(), "label_config": CONFIG})
    assert all(interface.LabelInterface(CONFIG).validate_prediction(one) for one in answer["results"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tasks": tasks()}, "label_config: expected the XML"),
        ({"label_config": CONFIG}, "tasks: expected a list, got NoneType"),
        ({"label_config": CONFIG, "tasks": [*tasks(), {"data": {"text": "a"}}]}, r"tasks\[3\]: .* under 'content'"),
        ({"label_config": CONFIG, "tasks": ["text"]}, r"tasks\[0\]: "),
    ],
)
def test_what_predict_refuses(body, message):
    with pytest.raises((ValueError, TypeError), match=message):
        backend_of(Finder()).predict(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": {"person": 0.4}}, r"threshold: expected '\*' for the labels that are not named"),
        ({"threshold": 3}, "threshold: expected a probability"),
        ({"descriptions": ["a"]}, "descriptions: expected a mapping"),
        ({"reading": {"context": -1}}, "context: expected"),
        ({"model": ""}, "model: expected a path"),
    ],
)
def test_what_the_backend_refuses(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LabelStudioBackend(**{"model": "nowhere", **options})


# --- HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask():
    """Requests to a server on the loopback: (method, path, body) -> (status, JSON value)."""
    server = make_backend_server(backend_of(Finder(("London", "place", 0.7))), port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def request(method, path, body=None):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    yield request
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_protocol(ask):
    status, health = ask("GET", "/health")
    assert (status, health["status"]) == (200, "UP") and ask("GET", "/") == (200, health)
    assert ask("POST", "/setup", {"project": "1.2", "schema": CONFIG}) == (200, {"model_version": "a model"})
    status, answer = ask("POST", "/predict", {"tasks": tasks(), "label_config": CONFIG})
    assert status == 200
    assert [[one["value"]["start"] for one in each["result"]] for each in answer["results"]] == [[36], [], [21]]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/setup", {"schema": "<View/>"}, 400, "label_config: expected <Labels"),
        ("POST", "/predict", {"tasks": 3, "label_config": CONFIG}, 400, "tasks: expected a list"),
        ("POST", "/predict", b"{", 400, "Expecting property name"),
        ("POST", "/predict", b"", 400, "Expecting value"),
        ("POST", "/predict", b"\xff", 400, "utf-8"),
        ("POST", "/predict", [], 400, "body: expected a JSON object, got list"),
        ("POST", "/train", {}, 404, "expected GET /health, POST /setup and POST /predict, got POST '/train'"),
        ("GET", "/predict", None, 404, "expected GET /health"),
    ],
)
def test_wrong_requests(ask, method, path, body, status, message):
    answered, value = ask(method, path, body)
    assert answered == status and message in value["error"]
    assert ask("GET", "/health")[0] == 200
