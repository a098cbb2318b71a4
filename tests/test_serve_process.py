"""The server as a process: connections, heads and bodies that do not come, signals, secrets, failures at the start."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")

from glimodern.serve.__main__ import main  # noqa: E402
from glimodern.serve.app import App  # noqa: E402
from glimodern.serve.body import Limits  # noqa: E402
from glimodern.serve.connections import Connections  # noqa: E402
from glimodern.serve.metrics import Metrics  # noqa: E402
from glimodern.serve.server import Server, uvicorn_config  # noqa: E402
from glimodern.serve.service import Service  # noqa: E402
from tests.conftest import WORDS  # noqa: E402
from tests.served import SECONDS, Gate, save_served, served_model  # noqa: E402

BODY = {"text": " ".join(WORDS), "labels": ["person", "place"], "threshold": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_served(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return served_model(folder)


@contextlib.contextmanager
def serving(model, *, connections=None, limits=None):
    """Yield the port and the connections of a server in a thread of this process."""
    metrics = Metrics()
    service = Service(
        {"tiny": lambda: model}, warm=False, max_delay=30.0, max_calls=64, pseudonym_key=b"k" * 32,
        on_batch=metrics.add_batch,
    )  # fmt: skip
    connections = connections or Connections(limit=100, head_seconds=30.0)
    app = App(service, limits or Limits(), metrics, connections=lambda: connections.open)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(uvicorn_config(app.asgi, connections, host="127.0.0.1", port=0, drain_seconds=30), service)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        port = listener.getsockname()[1]
        try:
            wait_until(lambda: get(port, "/readyz")[0] == 200)
            yield port, connections
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            service.close()
            assert not thread.is_alive()


def wait_until(condition):
    """Poll a condition on the server, with a limit."""
    limit = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        assert time.monotonic() < limit, "the server did not get there"
        time.sleep(0.01)


def get(port, path, body=None, headers=None):
    """Return status and JSON, or text, of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    content = None if body is None else json.dumps(body)
    connection.request(
        "GET" if body is None else "POST", path, content, {"content-type": "application/json", **(headers or {})}
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if "json" in answer.getheader("content-type", "") else text


def connect(port, content=b""):
    client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    client.sendall(content)
    return client


def all_of(client):
    """Read until the server closes the connection."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_connections_that_send_nothing_or_half_a_head_are_closed(model):
    with serving(model, connections=Connections(limit=100, head_seconds=0.2)) as (port, connections):
        silent = [connect(port), connect(port, b"POST /v1/enti"), connect(port, b"GET / HTTP/1.1\r\nhost: x\r\n")]
        assert [all_of(client) for client in silent] == [b"", b"", b""]
        kept = connect(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert all_of(kept).startswith(b"HTTP/1.1 200")
        wait_until(lambda: connections.open == 0 and not connections.idle)
        assert get(port, "/v1/entities", BODY)[0] == 200


def test_idle_connections_beyond_the_limit_make_room_and_busy_ones_do_not(model, monkeypatch):
    gate = Gate(monkeypatch, model)
    with serving(model, connections=Connections(limit=8, head_seconds=30.0)) as (port, connections):
        idle = [connect(port) for _ in range(50)]
        assert get(port, "/healthz")[0] == 200
        assert connections.open <= 8
        assert sum(is_closed(client) for client in idle) >= 42
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(get(port, "/v1/entities", BODY)[0])) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        assert gate.reached.wait(SECONDS)
        wait_until(lambda: connections.open == 8 and not connections.idle)
        refused = connect(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert all_of(refused).startswith(b"HTTP/1.1 503")
        gate.open.set()
        for thread in threads:
            thread.join(SECONDS)
        assert answers == [200] * 8
        wait_until(lambda: get(port, "/healthz")[0] == 200)


def is_closed(client):
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_head_without_end_is_refused(model):
    with serving(model) as (port, _):
        client = connect(port, b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for number in range(10_000):
                client.sendall(b"x-%d: %s\r\n" % (number, b"y" * 100))
        assert b"431" in all_of(client)[:20]
        other = connect(port, b"GET /" + b"a" * 200_000)
        assert b"431" in all_of(other)[:20]
        for broken in (b"\x00\x01\x02\r\n\r\n", b"NOTHING\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            assert all_of(connect(port, broken)).startswith(b"HTTP/1.1 400")
        assert get(port, "/healthz")[0] == 200


def test_requests_one_after_the_other_and_at_once_on_one_connection(model):
    with serving(model) as (port, connections):
        content = json.dumps(BODY).encode()
        head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        request = head % len(content) + b"\r\n" + content
        last = head % len(content) + b"connection: close\r\n\r\n" + content
        answers = all_of(connect(port, request * 3 + last))
        assert answers.count(b"HTTP/1.1 200") == 4
        assert answers.count(b'"entities"') == 4
        chunked = (
            b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        )
        assert all_of(connect(port, chunked)).startswith(b"HTTP/1.1 200")


def test_a_body_that_is_too_large_or_does_not_come(model):
    limits = Limits(max_body=100_000, body_timeout=0.2)
    head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with serving(model, limits=limits) as (port, _):
        assert b" 413 " in all_of(connect(port, head + b"content-length: 900000\r\n\r\n"))[:20]
        for size in (100_001, 700_000):  # a client sees the answer although it sends all of its body
            large = connect(port, head + b"content-length: %d\r\nconnection: close\r\n\r\n" % size + b" " * size)
            assert b" 413 " in all_of(large)[:20]
        assert b" 408 " in all_of(connect(port, head + b"content-length: 100\r\n\r\n{"))[:20]
        endless = connect(port, head + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                endless.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b" 413 " in all_of(endless)[:20]
        assert get(port, "/v1/entities", BODY)[0] == 200


def test_a_client_that_hangs_up_costs_nothing_more(model, monkeypatch):
    gate = Gate(monkeypatch, model)
    content = json.dumps({"texts": [BODY["text"]] * 900, "labels": ["person"]}).encode()
    head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with serving(model) as (port, connections):
        client = connect(port, head % len(content) + content)
        assert gate.reached.wait(SECONDS)
        client.close()
        wait_until(lambda: "glimodern_clients_gone_total 1.0" in get(port, "/metrics")[1])
        wait_until(lambda: "glimodern_queue_requests 0.0" in get(port, "/metrics")[1])
        gate.open.set()
        assert get(port, "/v1/entities", BODY)[0] == 200
    assert sum(gate.batches) < 450


def test_a_body_after_its_answer_is_no_head(model):
    with serving(model) as (port, _):
        body = b" " * 300_000
        head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
        client = connect(port, head % len(body))
        assert client.recv(12) == b"HTTP/1.1 415"
        client.sendall(body)
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        rest = all_of(client)
        assert b"HTTP/1.1 200" in rest and b"HTTP/1.1 431" not in rest


def test_a_head_without_end_behind_a_request_or_a_body_is_not_kept(model, monkeypatch):
    gate = Gate(monkeypatch, model)
    content = json.dumps(BODY).encode()
    head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    recorded = Recorded(limit=100, head_seconds=30.0)
    with serving(model, connections=recorded, limits=Limits(body_timeout=0.5)) as (port, connections):
        client = connect(port, head + b"content-length: %d\r\n\r\n%s" % (len(content), content))
        assert gate.reached.wait(SECONDS)
        protocol = recorded.protocols[-1]
        client.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200_000)
        wait_until(lambda: protocol._refusal is not None)
        assert sum(len(name) + len(value) for name, value in protocol.headers) < 600_000
        gate.open.set()
        answer = all_of(client)
        assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 431" in answer
        trailers = connect(port, head + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        trailers.sendall(b"x: y\r\n" * 200_000)
        assert b" 408 " in all_of(trailers)[:20]
        wait_until(lambda: connections.open == 0)


class Recorded(Connections):
    """Connections that keep their protocols."""

    def __init__(self, limit, head_seconds):
        super().__init__(limit, head_seconds)
        self.protocols = []

    def protocol(self, *args, **kwargs):
        self.protocols.append(super().protocol(*args, **kwargs))
        return self.protocols[-1]


def test_a_client_that_does_not_read_its_answer_is_cut_off(model):
    body = {"texts": [BODY["text"]] * 1000, "labels": BODY["labels"], "threshold": 0.0}
    content = json.dumps(body).encode()
    head = b"POST /v1/entities HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    request = head % len(content) + content
    with serving(model, connections=Connections(limit=100, head_seconds=0.2)) as (port, connections):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", port))
        with contextlib.suppress(OSError):
            for _ in range(20):  # more than the kernel's buffers hold
                client.sendall(request)
        wait_until(lambda: connections.open == 0)
        assert get(port, "/v1/entities", BODY)[0] == 200


def test_requests_that_do_not_reach_the_application_have_an_error_in_the_usual_form(model):
    with serving(model, connections=Connections(limit=1, head_seconds=30.0)) as (port, connections):
        for content, status in ((b"NOTHING\r\n\r\n", 400), (b"GET /" + b"a" * 100_000, 431)):
            head, _, body = all_of(connect(port, content)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert set(json.loads(body)["error"]) == {"status", "field", "expected", "got", "message"}
            assert json.loads(body)["error"]["status"] == status


def test_an_upgrade_is_not_made_and_the_connection_is_closed(model):
    upgrade = b"host: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    content = json.dumps(BODY).encode()
    post = b"POST /v1/entities HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    get_first = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with serving(model) as (port, _):
        assert all_of(connect(port, b"GET /healthz HTTP/1.1\r\n%s\r\n" % upgrade)).startswith(b"HTTP/1.1 200")
        refused = all_of(connect(port, post % (upgrade, len(content)) + content))
        assert refused.startswith(b"HTTP/1.1 400") and b'"field": "upgrade"' in refused
        both = all_of(connect(port, get_first + post % (upgrade, len(content)) + content))
        assert both.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 400" in both


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_server_is_left():
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        STARTED.pop().kill()


class Process:
    """A server process on a free port; its log is read line by line."""

    def __init__(self, *arguments, **environment):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-m", "glimodern.serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        STARTED.append(self.process)
        self.lines = []

    def wait_for(self, event):
        """Read the log up to an event, and return its fields."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{") and json.loads(line)["event"] == event:
                return json.loads(line)
        raise AssertionError(f"no {event!r} in {self.lines}")

    def end(self):
        self.lines += self.process.stderr.read().splitlines(keepends=True)
        return self.process.wait(SECONDS)


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted(folder):
    server = Process(f"tiny={folder}", folder.parent / "tiny", "--dtype", "fp32", "--log-level", "debug")
    assert server.end() == 2  # the same name twice
    assert "error: models: expected different names, got 'tiny' twice; write NAME=" in server.lines[-1]

    server = Process(folder, f"other={folder}", GLIMODERN_TOKEN="tokenword", GLIMODERN_PSEUDONYM_KEY="k" * 16)
    port = server.wait_for("listening")["port"]
    assert get(port, "/healthz")[0] == 200  # at once; ready comes later
    assert server.wait_for("ready")["models"] == ["tiny", "other"]
    assert get(port, "/v1/entities", BODY)[0] == 401
    token = {"authorization": "Bearer tokenword"}
    assert get(port, "/v1/entities", BODY, token)[0] == 200
    content = json.dumps(
        {"texts": [" ".join(WORDS * 20)] * 200, "labels": BODY["labels"], "model": "other", "top_k": 5}
    ).encode()
    head = "POST /v1/entities HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}authorization: Bearer tokenword\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
    client = connect(port, request)
    wait_until(lambda: "glimodern_queue_requests 1.0" in get(port, "/metrics", headers=token)[1])
    server.process.send_signal(signal.SIGTERM)
    answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b'"windows":') == 200
    assert server.end() == 0
    log = "".join(server.lines)
    assert "tokenword" not in log and "kkkk" not in log and "Lovelace" not in log and "person" not in log
    assert "stopped" in [json.loads(line)["event"] for line in server.lines]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_are_warmed(folder, number):
    server = Process(folder, *(f"{name}={folder}" for name in "abc"))
    server.wait_for("model loaded")
    server.process.send_signal(number)
    assert server.end() == (0 if number == signal.SIGTERM else 130)
    assert not any("Traceback" in line or "terminate" in line for line in server.lines)


@pytest.mark.slow
def test_a_server_without_standard_error(folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = 'exec "$@" 2>&-'
    arguments = [sys.executable, "-m", "glimodern.serve", "--port", str(port), str(folder)]
    server = subprocess.Popen(["sh", "-c", command, "sh", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_until(lambda: get(port, "/readyz")[0] == 200)
    assert get(port, "/v1/entities", BODY)[0] == 200
    server.send_signal(signal.SIGTERM)
    assert server.wait(SECONDS) == 0


@pytest.mark.slow
def test_a_checkpoint_that_does_not_load_ends_the_server_with_one_line(tmp_path):
    (tmp_path / "broken").mkdir()
    server = Process(tmp_path / "broken")
    assert server.end() == 2
    assert server.lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in server.lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "models: expected at least one"),
        (("=x",), r"models: expected \[NAME=\]MODEL, got '=x'"),
        (("a=",), r"models: expected \[NAME=\]MODEL, got 'a='"),
        (("x", "--port", "70000"), "port: expected a whole number >= 0 and <= 65535, got 70000"),
        (("x", "--max-body", "0"), "max_body: expected a whole number >= 1, got 0"),
        (("x", "--timeout", "0"), "timeout: expected a number > 0, got 0"),
        (("x", "--max-delay", "nan"), "max_delay: expected"),
        (("x", "--token-file", "EMPTY"), "--token-file: expected at least 1 bytes, got 0"),
        (("x", "--pseudonym-key-file", "SHORT"), "--pseudonym-key-file: expected at least 16 bytes, got 5"),
    ],
)
def test_wrong_settings(tmp_path, arguments, message):
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "SHORT").write_text("short\n")
    arguments = [str(tmp_path / a) if a in ("EMPTY", "SHORT") else a for a in arguments]
    with pytest.raises((ValueError, SystemExit), match=None) as error:
        main(arguments)
    if error.type is not SystemExit:
        assert error.match(message)


def test_a_token_file_that_cannot_be_read(tmp_path):
    with pytest.raises(OSError):
        main(["x", "--token-file", str(tmp_path / "missing")])
