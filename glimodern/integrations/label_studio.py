"""A Label Studio ML backend: it predicts the entities of tasks, for the labels of each project.

    make_backend_server(LabelStudioBackend("runs/demo/model")).serve_forever()

The HTTP protocol is served here, with the standard library alone. The package label-studio-ml is not used: its releases
pin Flask 1, Werkzeug 2.0 and Jinja2 3.0, and all that it would add is the training of models.
Sources: https://labelstud.io/guide/ml_create, https://github.com/HumanSignal/label-studio-ml-backend
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from glimodern.cli.reading import DEFAULT_THRESHOLD
from glimodern.data.convert.label_studio import Control, read_config, region
from glimodern.display import short, typed

from .asking import AskedThreshold, LazyModel, check_labels_and_threshold

DEFAULT_PORT = 9090  # of Label Studio's own examples
_PATHS = "GET /health, POST /setup and POST /predict"


class LabelStudioBackend:
    """Predictions for Label Studio, as methods and as a WSGI application.

    The labels are those of each project's config: Labels tags that mark Text tags. The model reads a label's
    description, or else its hint, or else its value. Results have its alias, or else its value. Tasks must hold their
    texts; nothing is downloaded. The checkpoint is loaded by the first prediction.
    """

    def __init__(
        self,
        model: str,
        threshold: AskedThreshold = DEFAULT_THRESHOLD,
        *,
        descriptions: Mapping[str, str] | None = None,
        flat: bool = True,
        multi_label: bool = False,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        """Create the backend.

        model, dtype, device, revision: see `GLiModern.from_pretrained`. threshold, flat, multi_label: see `predict`; a
        mapping of thresholds needs "*", because projects have labels of their own, and those that a project lacks are
        not asked. descriptions: {label: description} for the model to read. reading: a mapping with any of `predict`'s
        long_texts, window, context and labels_per_prompt. Raises ValueError and TypeError.
        """
        if isinstance(threshold, Mapping) and "*" not in threshold:
            raise ValueError(
                f"threshold: expected '*' for the labels that are not named, got {short(list(threshold))}; add '*'"
            )
        self.threshold = dict(threshold) if isinstance(threshold, Mapping) else threshold
        named = [label for label in self.threshold if label != "*"] if isinstance(self.threshold, dict) else []
        check_labels_and_threshold(named or ["*"], self.threshold)
        if descriptions is not None and not isinstance(descriptions, Mapping):
            raise TypeError(f"descriptions: expected a mapping of label -> description, got {typed(descriptions)}")
        self.descriptions = dict(descriptions or {})
        self._model = LazyModel(
            model, flat=flat, multi_label=multi_label, dtype=dtype, device=device, revision=revision, reading=reading
        )
        self._predicting = threading.Lock()  # one prediction at a time has all cores

    def health(self) -> dict[str, Any]:
        """Return what GET /health answers."""
        return {"status": "UP", "model_class": type(self).__name__, "model_version": self._model.name}

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check a project's label config, which "schema" holds, and return what POST /setup answers.

        Raises ValueError and TypeError for a config without labels of plain text.
        """
        read_config(body.get("schema"))
        return {"model_version": self._model.name}

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what POST /predict answers: a prediction for each of the "tasks", in their order.

        body: "tasks", each with its "data", and the project's "label_config". A prediction has "result", the regions,
        and "score", their mean probability, if there are any. Raises ValueError and TypeError.
        """
        controls = read_config(body.get("label_config"))
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise TypeError(f"tasks: expected a list, got {typed(tasks)}")
        results: list[list[dict[str, Any]]] = [[] for _ in tasks]
        for control in controls:
            texts = [_text(task, control, f"tasks[{index}]") for index, task in enumerate(tasks)]
            for text, regions, entities in zip(texts, results, self._find(texts, control), strict=True):
                for entity in entities:
                    span = entity["start"], entity["end"], entity["label"]
                    names = control.from_name, control.to_name
                    regions.append({**region(text, span, len(regions), names), "score": entity["score"]})
        return {"results": [self._prediction(regions) for regions in results], "model_version": self._model.name}

    def _find(self, texts: list[str], control: Control) -> Iterable[list[dict[str, Any]]]:
        labels = {name: self.descriptions.get(name, prompt) for name, prompt in control.labels.items()}
        threshold = self.threshold
        if isinstance(threshold, dict):
            threshold = {label: value for label, value in threshold.items() if label in labels or label == "*"}
        with self._predicting:
            return list(self._model.find(texts, labels, threshold)) if texts else []

    def _prediction(self, regions: list[dict[str, Any]]) -> dict[str, Any]:
        score = {"score": sum(one["score"] for one in regions) / len(regions)} if regions else {}
        return {"model_version": self._model.name, "result": regions, **score}

    # HTTP

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON value that answer a request.

        A wrong request has the status 400, with the reason under "error"; other requests than the three have 404,
        because nothing is trained here.
        """
        answers: dict[tuple[str, str], Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            ("POST", "/setup"): self.setup,
            ("POST", "/predict"): self.predict,
        }
        route = method, path.rstrip("/")
        if route in (("GET", "/health"), ("GET", "")):
            return 200, self.health()
        if route not in answers:
            return 404, {"error": f"expected {_PATHS}, got {method} {short(path)}"}
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise TypeError(f"body: expected a JSON object, got {typed(asked)}")
            return 200, answers[route](asked)
        except (ValueError, TypeError) as error:
            return 400, {"error": str(error)}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request as a WSGI application (PEP 3333), for a server of your choice."""
        length = environ.get("CONTENT_LENGTH") or "0"
        body = environ["wsgi.input"].read(int(length)) if length.isdecimal() else b""
        status, value = self.respond(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), body)
        answer = json.dumps(value, ensure_ascii=False).encode()
        reasons = {200: "OK", 400: "Bad Request", 404: "Not Found"}
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
        start_response(f"{status} {reasons[status]}", headers)
        return [answer]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers health checks, which wait for a second only, while a prediction runs."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """Prints no line a request."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def make_backend_server(backend: LabelStudioBackend, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> WSGIServer:
    """Return a server for a backend, bound to its address; its serve_forever answers until its shutdown is called.

    host: its default is reached from this machine only. The protocol has no secret: give another address only in a
    network that you trust. port: 0 takes a free one, which `server_port` names. Raises OSError for a taken one.
    """
    return make_server(host, port, backend, _Server, _QuietHandler)


def _text(task: Any, control: Control, where: str) -> str:
    data = task.get("data") if isinstance(task, Mapping) else None
    text = data.get(control.key) if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f'{where}: expected the text of the task in "data" under {control.key!r}, got {short(task)}')
    return text
