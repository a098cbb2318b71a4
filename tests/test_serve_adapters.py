"""Adapters in the server: named by requests, never mixed in a batch, loaded once beside their base."""

import asyncio
import logging

import pytest

pytest.importorskip("httpx", reason="needs the extra client")
pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("peft", reason="needs the extra lora")

from conftest import WORDS, make_tiny_model  # noqa: E402
from test_adapters import adapter_of  # noqa: E402
from test_serve import ask, make_app, post, send  # noqa: E402

from glimodern.serve import __main__ as command  # noqa: E402
from tests.served import save_served, served_model  # noqa: E402

LABELS, TEXTS = ["person", "place", "machine"], [" ".join(WORDS[i:]) for i in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_served(folder / "model")
    return base, {name: adapter_of(base, folder / name, size=size) for name, size in (("one", 0.2), ("two", 0.6))}


@pytest.fixture(scope="module")
def served(folders):
    base, adapters = folders
    app = make_app({"base": served_model(base)}, adapters={name: str(path) for name, path in adapters.items()})
    yield app
    app.service.close()


def test_interleaved_requests_have_the_entities_of_their_adapters(folders, served):
    base, adapters = folders
    models = {None: served_model(base), **{n: served_model(base).with_adapter(path) for n, path in adapters.items()}}
    bodies = [
        {"text": text, "labels": LABELS, "threshold": 0.3, **({} if name is None else {"adapter": name})}
        for text in TEXTS
        for name in models
    ]
    answers = asyncio.run(send(served, [("POST", "/v1/entities", {"json": body}) for body in bodies]))
    found: dict[str | None, list[object]] = {name: [] for name in models}
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        found[body.get("adapter")].append(answer.json()["entities"])
    for name, model in models.items():
        assert found[name] == [list(text) for text in model.predict(TEXTS, LABELS, 0.3)]
    assert found["one"] != found["two"] != found[None]


def test_models_name_their_adapters(served):
    assert ask(served, "GET", "/v1/models").json()["models"][0]["adapters"] == ["one", "two"]
    answer = post(served, {"text": TEXTS[0], "labels": LABELS, "adapter": "three"})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"], error["got"]) == (422, "adapter", '"three"')
    assert error["expected"] == "an adapter of base (one, two)"
    assert post(served, {"text": "x", "labels": LABELS, "adapter": 3}).json()["error"]["field"] == "adapter"


def test_an_adapter_goes_with_the_models_that_it_fits(folders, tmp_path):
    base, adapters = folders
    make_tiny_model(dropout=0.0, max_width=5).save_pretrained(tmp_path / "other")
    model, other = served_model(base), served_model(base)
    other._loaded_fingerprint = "another"
    app = make_app({"other": other, "base": model}, adapters={"one": str(adapters["one"])})
    assert {name: list(found) for name, found in app.service.adapted.items()} == {"other": [], "base": ["one"]}
    assert app.service.adapted["base"]["one"].encoder.model.embeddings is not model.encoder.model.embeddings
    app.service.close()
    with pytest.raises(ValueError, match="adapter_base.json: base_fingerprint: expected another, that of"):
        make_app({"other": other}, adapters={"one": str(adapters["one"])})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["folder"], "--adapter: expected NAME=FOLDER, got 'folder'"),
        (["=folder"], "--adapter: expected NAME=FOLDER, got '=folder'"),
        (["a=x", "a=y"], "--adapter: expected different names, got 'a' twice"),
    ],
)
def test_bad_arguments(given, message, caplog):
    caplog.set_level(logging.CRITICAL)
    arguments = [part for value in given for part in ("--adapter", value)]
    with pytest.raises(ValueError, match=message):
        command.main(["model", *arguments])
