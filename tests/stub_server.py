"""A small real server on loopback that speaks the protocol of glimodern.serve; its model finds labels as words.

A text's entities are the words whose lower-case form is a label's description (a label "band" finds "band"), so tests
know what must be found. `Stub.script` holds answers to give first, in order.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[1] / "glimodern" / "serve" / "page.html"
MODELS = [
    {
        "name": name, "default": name == "small", "dtype": "fp32", "max_words": 384, "max_width": 12, "max_types": 25,
        "calibrated": name == "large", "adapters": [],
    }
    for name in ("small", "large")
]  # fmt: skip


class Answer(NamedTuple):
    """A scripted answer. body: JSON, or bytes as they are."""

    status: int
    body: Any
    headers: dict[str, str] = {}


def refusal(status: int, field: str | None = None, message: str = "no", **headers: str) -> Answer:
    """The error answer of the protocol."""
    error = {"status": status, "field": field, "expected": None, "got": None, "message": message}
    return Answer(status, {"error": error}, {name.replace("_", "-"): value for name, value in headers.items()})


def found(text: str, labels: Any) -> list[dict[str, Any]]:
    """The entities of a text: offsets in code points, as Python counts."""
    described = labels if isinstance(labels, dict) else {label: label for label in labels}
    return [
        {"start": word.start(), "end": word.end(), "text": word[0], "label": label, "score": 0.75}
        for word in re.finditer(r"\w+", text)
        for label, description in described.items()
        if word[0].lower() == description
    ]


def answer_text(text: str, body: dict[str, Any], redact: bool) -> dict[str, Any]:
    """The answer for one text; a text "fail" fails alone."""
    if text == "fail":
        return refusal(422, "texts", "texts: expected a text that does not fail, got this; change it").body
    entities = found(text, body["labels"])
    answer = {"entities": entities, "windows": 1, "words_cut": text.count("cut")}
    if not redact:
        return answer
    redacted, last = "", 0
    for number, entity in enumerate(entities, 1):
        redacted += text[last : entity["start"]]
        entity["replacement"] = f"[{entity['label'].upper()}_{number}]"
        entity["redacted_start"] = len(redacted)
        redacted += entity["replacement"]
        entity["redacted_end"], last = len(redacted), entity["end"]
    return {"text": redacted + text[last:], **answer}


def policy(page: str) -> str:
    """The content security policy that allows the page's own style and script, and nothing else."""

    def hashed(tag: str) -> str:
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {hashed('style')}; script-src {hashed('script')}; "
        "connect-src 'self'; img-src data:"
    )


class Stub:
    """The server's state.

    requests: (path, body) in order; headers: those of each. script: answers to give first. free: cleared by a test that
    holds the answers back.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.models = MODELS
        self.script: list[Answer] = []
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.free = threading.Event()
        self.free.set()

    def answer(self, path: str, headers: Any, body: bytes) -> Answer:
        if path == "/":
            page = PAGE.read_text(encoding="utf-8")
            kind = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy(page)}
            return Answer(200, page.encode(), kind)
        asked = json.loads(body) if body else None
        self.requests.append((path, asked))
        self.headers.append(dict(headers))
        self.free.wait(60)
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            return refusal(401, None, "token: expected the server's, got none or another; send it")
        if path == "/v1/models":
            return Answer(200, {"models": self.models})
        if self.script:
            return self.script.pop(0)
        if path == "/readyz":
            return Answer(200, {"status": "ready"})
        if path not in ("/v1/entities", "/v1/redact"):
            return refusal(404, None, f"path: expected one of this server's, got {path}")
        model, redact = asked.get("model", self.models[0]["name"]), path == "/v1/redact"
        if "text" in asked:
            one = answer_text(asked["text"], asked, redact)
            if "error" in one:
                return Answer(422, one)
            return Answer(200, {"model": model, **one, "warnings": []})
        each = asked["labels"] if isinstance(asked["labels"], list) else []
        sets = each if any(not isinstance(one, str) for one in each) else [asked["labels"]] * len(asked["texts"])
        results = [
            answer_text(text, {**asked, "labels": one}, redact) for text, one in zip(asked["texts"], sets, strict=True)
        ]
        warned = ["words at the ends were not read"] if any("cut" in text for text in asked["texts"]) else []
        return Answer(200, {"model": model, "results": results, "warnings": warned})


@contextlib.contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Serve on a free port of loopback; `stub.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            answer = stub.answer(self.path, self.headers, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("X-Request-ID", "r1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a browser that stopped waiting
                self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        stub.free.set()
        server.shutdown()
        thread.join()
        server.server_close()
