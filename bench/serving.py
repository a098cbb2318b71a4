"""The server under load: throughput against offline `predict`, latency of one client, gliner.serve beside it.

    python bench/serving.py MODEL DATA [DATA ...] [--dtype fp32] [--clients 64] [--requests 192] [--rounds 3]
    python bench/serving.py MODEL DATA [DATA ...] --peer PYTHON
    python bench/serving.py MODEL DATA [DATA ...] --storm 10000

The requests are texts of 20 to 400 words, made of the data's sentences, with 5 to 40 labels each, different for each
request. Clients send their next request when they have the answer to the last one (a closed loop). All sides run in
turns on the same requests; the server's answers are compared with those of `predict`, which must be equal.

--peer: the interpreter of an environment with gliner and ray[serve]; gliner.serve then runs on the same requests, each
side alone. gliner asks all labels in one prompt, so ours runs a second time with labels_per_prompt=1000.
--storm: so many requests at three times the measured capacity, a fifth of them bad, a tenth of the clients hanging up
before the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from glimodern.data import load_split

_LABELS = (
    "person organization city country event product date money disease drug gene protein species book film song album "
    "band genre award law language university school hospital company party ministry newspaper website software "
    "algorithm metric dataset task field theory weapon vehicle ship aircraft building bridge river lake mountain "
    "planet animal plant food drink sport team stadium tournament religion nationality profession title"
).split()
_SENTENCE = "The president of Norway met Angela Merkel in Oslo on Monday to sign the treaty."
_START_SECONDS = 300


class Work(NamedTuple):
    text: str
    labels: list[str]


def make_work(sources: list[str], count: int) -> list[Work]:
    """Make requests from the sentences of data sets, the same ones in every run."""
    chance = random.Random(0)
    sentences = [" ".join(example.words) for source in sources for example in load_split(source, "test")]
    work = []
    for _ in range(count):
        words: list[str] = []
        wanted = chance.randint(20, 400)
        while len(words) < wanted:
            words += chance.choice(sentences).split()
        work.append(Work(" ".join(words[:wanted]), chance.sample(_LABELS, chance.randint(5, 40))))
    return work


# sides


class Offline:
    """A process with the model, which answers lines of JSON by `predict`."""

    def __init__(self, model: str, dtype: str) -> None:
        command = [sys.executable, __file__, "--offline-worker", model, dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def ask(self, work: list[Work], repeat: int = 1) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"work": work, "repeat": repeat}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def offline_worker(name: str, dtype: str) -> None:
    import warnings

    from glimodern import GLiModern

    warnings.simplefilter("ignore")
    model = GLiModern.from_pretrained(name, dtype=dtype)
    model.predict([_SENTENCE] * 64, _LABELS[:9])
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts, labels = [text for text, _ in asked["work"]], [labels for _, labels in asked["work"]]
        times = []
        for _ in range(asked["repeat"]):
            started = time.perf_counter()
            found = model.predict(texts, labels, progress=False)
            times.append(time.perf_counter() - started)
        print(json.dumps({"seconds": times, "entities": [list(entities) for entities in found]}), flush=True)


@contextlib.contextmanager
def our_server(model: str, dtype: str, *options: str) -> Iterator[tuple[int, int]]:
    """Yield (port, process id) of a server."""
    port = _free_port()
    command = [sys.executable, "-m", "glimodern.serve", model, "--dtype", dtype, "--port", str(port)]
    with _process([*command, "--log-level", "warning", *options]) as process:
        _wait_for(f"http://127.0.0.1:{port}/readyz")
        yield port, process.pid


@contextlib.contextmanager
def gliner_server(python: str, model: str) -> Iterator[int]:
    port = _free_port()
    command = [python, "-m", "gliner.serve", "--model", str(Path(model).resolve()), "--device", "cpu"]
    threads = str(os.cpu_count())
    options = ["--dtype", "float32", "--num-gpus-per-replica", "0", "--tokenizer-threads", threads, "--no-compile"]
    options += ["--max-model-len", "512", "--port", str(port), "--num-cpus-per-replica", threads]
    with _process([*command, *options], group=True):
        body = json.dumps({"text": _SENTENCE, "labels": ["person"]}).encode()
        _wait_for(f"http://127.0.0.1:{port}/gliner", body)
        yield port


@contextlib.contextmanager
def _process(command: list[str], *, group: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    log = subprocess.DEVNULL if group else None
    process = subprocess.Popen(command, start_new_session=group, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(url: str, body: bytes | None = None) -> None:
    limit = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=60)
            return
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)


# clients


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Send a request and read its answer: status and body."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
    if length:
        return status, await reader.readexactly(int(length))
    parts = []  # in chunks
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, b"".join(parts)


class Run(NamedTuple):
    seconds: float
    latencies: list[float]
    bodies: list[bytes]


async def _closed_loop(port: int, requests: list[bytes], clients: int) -> Run:
    waiting = list(reversed(range(len(requests))))
    bodies, latencies = [b""] * len(requests), [0.0] * len(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        while waiting:
            number = waiting.pop()
            started = time.perf_counter()
            status, bodies[number] = await exchange(reader, writer, requests[number])
            latencies[number] = time.perf_counter() - started
            if status != 200:
                raise RuntimeError(f"request {number}: status {status}, {bodies[number][:200]!r}")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Run(time.perf_counter() - started, latencies, bodies)


def closed_loop(port: int, path: str, bodies: list[dict[str, Any]], clients: int) -> Run:
    return asyncio.run(_closed_loop(port, [request_bytes(path, body) for body in bodies], clients))


# measures


def throughput(arguments: argparse.Namespace) -> None:
    work = make_work(arguments.data, arguments.requests)
    bodies = [{"text": text, "labels": labels} for text, labels in work]
    offline = Offline(arguments.model, arguments.dtype)
    ours: list[Run] = []
    direct: list[float] = []
    with our_server(arguments.model, arguments.dtype, "--timeout", "600", "--max-delay", "600") as (port, _):
        expected = offline.ask(work)["entities"]
        for _ in range(arguments.rounds):
            direct += offline.ask(work)["seconds"]
            ours.append(closed_loop(port, "/v1/entities", bodies, arguments.clients))
        differ = sum(
            json.loads(body)["entities"] != found for body, found in zip(ours[0].bodies, expected, strict=True)
        )
        report("offline predict", direct, len(work))
        report(f"server, {arguments.clients} clients", [run.seconds for run in ours], len(work), ours)
        share = statistics.median(direct) / statistics.median(run.seconds for run in ours)
        print(f"server / offline: {share:.3f}; answers that differ: {differ} of {len(work)}")
        latency(port, offline)
    offline.close()


def latency(port: int, offline: Offline, rounds: int = 5, each: int = 100) -> None:
    """One client, one sentence: the median over the direct call, in turns."""
    work = Work(_SENTENCE, _LABELS[:5])
    direct: list[float] = []
    served: list[float] = []
    for _ in range(rounds):
        direct += offline.ask([work], each)["seconds"]
        served += closed_loop(port, "/v1/entities", [work._asdict()] * each, 1).latencies
    p50, ours = statistics.median(direct) * 1e3, statistics.median(served) * 1e3
    print(f"one sentence: p50 direct {p50:.2f} ms, served {ours:.2f} ms: +{ours - p50:.2f} ms")


def report(name: str, seconds: list[float], count: int, runs: list[Run] | None = None) -> None:
    line = f"{name}: {count / statistics.median(seconds):.2f} requests/s ({', '.join(f'{s:.2f}' for s in seconds)} s)"
    if runs:
        waits = sorted(wait for run in runs for wait in run.latencies)
        line += f", p50 {waits[len(waits) // 2]:.2f} s, p99 {waits[int(len(waits) * 0.99)]:.2f} s"
    print(line, flush=True)


def against_gliner(arguments: argparse.Namespace) -> None:
    work = make_work(arguments.data, arguments.requests)
    sides: dict[str, Callable[[], Run]] = {}
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(
            our_server(arguments.model, arguments.dtype, "--timeout", "600", "--max-delay", "600")
        )
        peer = stack.enter_context(gliner_server(arguments.peer, arguments.model))
        for name, own in (("ours", {}), ("ours, one prompt", {"labels_per_prompt": 1000})):
            bodies = [{"text": text, "labels": labels, **own} for text, labels in work]
            sides[name] = lambda bodies=bodies: closed_loop(port, "/v1/entities", bodies, arguments.clients)
        plain = [{"text": text, "labels": labels} for text, labels in work]
        sides["gliner.serve"] = lambda: closed_loop(peer, "/gliner", plain, arguments.clients)
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, run in sides.items():
                runs[name].append(run())
    for name, done in runs.items():
        report(name, [run.seconds for run in done], len(work), done)
    theirs = [json.loads(body)["entities"] for body in runs["gliner.serve"][0].bodies]
    ours = [json.loads(body)["entities"] for body in runs["ours, one prompt"][0].bodies]

    def keys(entities: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {(entity["start"], entity["end"], entity["label"]) for entity in entities}

    same = sum(keys(a) == keys(b) for a, b in zip(ours, theirs, strict=True))
    print(f"texts with the same entities in one prompt: {same} of {len(work)}")


BAD: list[bytes] = [
    request_bytes("/v1/entities", {"text": "Ada", "labels": "person"}),
    request_bytes("/v1/entities", {"text": 3, "labels": ["person"]}),
    request_bytes("/v1/entities", {"text": "Ada", "labels": ["x" * 2000]}),
    request_bytes("/v1/entities", {"text": "Ada", "labels": ["person"], "threshold": 7}),
    request_bytes("/v1/entities", {"text": "Ada", "labels": ["person"], "model": "../../etc/passwd"}),
    request_bytes("/v1/entities", {"text": "word " * 30_000, "labels": ["person"]}),
    request_bytes("/v1/nothing", {"text": "Ada"}),
    b"POST /v1/entities HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{",
    b"POST /v1/entities HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}",
]


def storm(arguments: argparse.Namespace) -> None:
    """Send an open-loop storm, and count the answers by kind; every accepted one must be right."""
    work = make_work(arguments.data, 256)
    offline = Offline(arguments.model, arguments.dtype)
    asked = offline.ask(work)
    expected = [json.loads(json.dumps(entities)) for entities in asked["entities"]]
    offline.close()
    rate = 3 * len(work) / asked["seconds"][0]
    with our_server(arguments.model, arguments.dtype, "--max-delay", "10") as (port, process):
        asyncio.run(_storm(port, process, work, expected, arguments.storm, rate))
        _wait_for(f"http://127.0.0.1:{port}/readyz")


async def _storm(port: int, process: int, work: list[Work], expected: list[Any], count: int, rate: float) -> None:
    chance = random.Random(1)
    counts: Counter[str] = Counter()
    requests = [request_bytes("/v1/entities", item._asdict()) for item in work]
    memory: list[float] = []

    async def one(number: int) -> None:
        kind = chance.random()
        chosen = number % len(work)
        bad = kind < 0.2
        request = BAD[number % len(BAD)] if bad else requests[chosen]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
            if 0.2 <= kind < 0.3:
                writer.write(request)
                await writer.drain()
                await asyncio.sleep(chance.random())
                writer.close()
                counts["hung up"] += 1
                return
            status, body = await exchange(reader, writer, request)
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            counts[f"no answer ({type(error).__name__})"] += 1
            return
        if status == 200:
            right = not bad and json.loads(body)["entities"] == expected[chosen]
            counts["200 right" if right else "200 WRONG"] += 1
        else:
            counts[f"{'bad' if bad else 'good'} {status}"] += 1

    tasks = []
    started = time.perf_counter()
    for number in range(count):
        tasks.append(asyncio.ensure_future(one(number)))
        if number % 500 == 0:
            memory.append(_resident_mib(process))
        await asyncio.sleep(max(0.0, started + (number + 1) / rate - time.perf_counter()))
    await asyncio.gather(*tasks)
    memory.append(_resident_mib(process))
    print(f"{count} requests at {rate:.1f} a second in {time.perf_counter() - started:.0f} s")
    for kind, number in sorted(counts.items()):
        print(f"  {kind}: {number}")
    print("  MiB resident:", ", ".join(f"{mib:.0f}" for mib in memory), flush=True)


def _resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    if sys.argv[1:2] == ["--offline-worker"]:
        offline_worker(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="interpreter of an environment with gliner and ray[serve]")
    parser.add_argument("--storm", type=int)
    arguments = parser.parse_args()
    if arguments.storm:
        storm(arguments)
    elif arguments.peer:
        against_gliner(arguments)
    else:
        throughput(arguments)


if __name__ == "__main__":
    main()
