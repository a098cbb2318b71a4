"""The server's command line: `python -m glimodern.serve MODEL`; see docs/serving.md."""

from __future__ import annotations

import logging
import os
import resource
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro

from glimodern import cli
from glimodern.files.atomic import user_path
from glimodern.inputs.words import SplitterName
from glimodern.settings import AT_LEAST_ONE, POSITIVE, Range, check_settings

from .body import Limits
from .logs import LogFormat, configure_logs

_LOGGER = logging.getLogger("glimodern.serve")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SPARE_FILES = 64  # file descriptors for other things than connections
_TOKEN_VARIABLE, _KEY_VARIABLE = "GLIMODERN_TOKEN", "GLIMODERN_PSEUDONYM_KEY"
_PORT = Range(0, 65_535)


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `python -m glimodern.serve`."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Folders or hub names of checkpoints, each as MODEL or NAME=MODEL. The first is the default of requests. Without
    NAME the last part of MODEL is its name. No other models are loaded."""
    adapter: Annotated[cli.Repeated, tyro.conf.arg(metavar="NAME=FOLDER")] = ()
    """Adapter that requests may name, a folder of `python -m glimodern.train --lora-rank`. It shares the memory of the
    model that it was trained on. May be given several times."""
    host: str = "127.0.0.1"
    """Address to listen on. Behind an address that others can reach, set a token."""
    port: Annotated[int, _PORT] = 8000
    """Port to listen on; 0: a free one, which the log names."""
    allow_host: Annotated[cli.Repeated, tyro.conf.arg(metavar="NAME")] = ()
    """Name by which requests may call a server on a loopback address, beside localhost; that of a reverse proxy which
    passes its own on. May be given several times."""
    token_file: str | None = None
    """File with the bearer token that requests must have. Default: the environment variable GLIMODERN_TOKEN; without
    it no token is asked for."""
    pseudonym_key_file: str | None = None
    """File with the secret of pseudonyms, at least 16 bytes. Default: the environment variable GLIMODERN_PSEUDONYM_KEY;
    without it a random one, so that pseudonyms change when the server starts again."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "auto"
    """Dtype of the models; auto: bf16 on hardware that multiplies it natively, else fp32."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, cuda:N, auto, or another of PyTorch's names."""
    splitter: SplitterName | None = None
    """How texts are split into words, unicode for scripts without spaces; by default as the checkpoint says."""
    warmup: bool = True
    """Run each model before the server is ready."""
    limits: Limits = field(default_factory=Limits)
    max_delay: Annotated[float, POSITIVE] = 30.0
    """Seconds that the texts in the queue may be expected to take when a request arrives; a request beyond it is
    answered with 429."""
    max_requests: Annotated[int, AT_LEAST_ONE] = 1024
    """Maximum requests in the queue."""
    max_connections: Annotated[int, AT_LEAST_ONE] = 4096
    """Maximum open connections. A new one beyond it takes the place of the one that is idle longest."""
    idle_timeout: Annotated[float, POSITIVE] = 15.0
    """Seconds after which a connection is closed that sends no request, or not the whole head of one."""
    drain_timeout: Annotated[float, POSITIVE] = 50.0
    """Seconds to answer accepted requests after SIGTERM."""
    log_format: LogFormat = "json"
    """One JSON object a line, or plain text. No log has a text, a label or a token."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level to log."""

    def __post_init__(self) -> None:
        check_settings(self)


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[ServeConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.serve"
    )
    names = _names_of(config.models)
    if not names:
        raise ValueError("models: expected at least one [NAME=]MODEL, got none")
    adapters = _adapters_of(config.adapter)
    token = _secret("--token-file", config.token_file, _TOKEN_VARIABLE, least=1)
    key = _secret("--pseudonym-key-file", config.pseudonym_key_file, _KEY_VARIABLE, least=16)
    if token is not None and not token.isascii():
        raise ValueError("token: expected ASCII characters, got others; choose another token")
    _open_standard_files()
    configure_logs(config.log_format, config.log_level)
    if token is None and config.host not in _LOOPBACK:
        _LOGGER.warning(
            "anyone who reaches this address may use the server: no token is set", extra={"host": config.host}
        )
    _serve(config, names, adapters, None if token is None else token.decode(), key or secrets.token_bytes(32))


def _names_of(models: Sequence[str]) -> dict[str, str]:
    """Return {name: folder or hub name} of arguments [NAME=]MODEL. Raises ValueError."""
    named: dict[str, str] = {}
    for argument in models:
        name, equals, model = argument.partition("=")
        if not equals or "/" in name:
            name, model = argument.rstrip("/").rpartition("/")[2], argument
        if not name or not model:
            raise ValueError(f"models: expected [NAME=]MODEL, got {argument!r}")
        if name in named:
            raise ValueError(f"models: expected different names, got {name!r} twice; write NAME={model}")
        named[name] = model
    return named


def _adapters_of(given: Sequence[str]) -> dict[str, str]:
    """Return {name: folder} of arguments NAME=FOLDER. Raises ValueError."""
    named: dict[str, str] = {}
    for argument in given:
        name, _, folder = argument.partition("=")
        if not name or not folder:
            raise ValueError(f"--adapter: expected NAME=FOLDER, got {argument!r}")
        if name in named:
            raise ValueError(f"--adapter: expected different names, got {name!r} twice")
        named[name] = folder
    return named


def _secret(option: str, file: str | None, variable: str, least: int) -> bytes | None:
    """Return the content of a file, or of an environment variable, without the line end; None if neither is given."""
    if file is not None:
        value, where = user_path(file, option).read_bytes().rstrip(b"\r\n"), option
    elif os.environ.get(variable):
        value, where = os.environ[variable].encode(), variable
    else:
        return None
    if len(value) < least:
        raise ValueError(f"{where}: expected at least {least} bytes, got {len(value)}")
    return value


def _serve(config: ServeConfig, names: dict[str, str], adapters: dict[str, str], token: str | None, key: bytes) -> None:
    from glimodern.model.glimodern import GLiModern

    from .app import App
    from .connections import Connections
    from .metrics import Metrics
    from .server import Server, uvicorn_config
    from .service import Service

    metrics = Metrics()
    load = {
        name: partial(
            GLiModern.from_pretrained, model, dtype=config.dtype, device=config.device, splitter=config.splitter
        )
        for name, model in names.items()
    }
    service = Service(
        load, warm=config.warmup, max_delay=config.max_delay, max_calls=config.max_requests, pseudonym_key=key,
        on_batch=metrics.add_batch, adapters=adapters,
    )  # fmt: skip
    connections = Connections(_files_for(config.max_connections), config.idle_timeout)
    hosts = (*_LOOPBACK, *config.allow_host) if config.host in _LOOPBACK else None
    app = App(service, config.limits, metrics, token=token, hosts=hosts, connections=lambda: connections.open)
    settings = uvicorn_config(
        app.asgi, connections, host=config.host, port=config.port, drain_seconds=config.drain_timeout
    )
    server = Server(settings, service)
    try:
        server.run()
    finally:
        service.close()
    if server.failure is not None:
        raise server.failure


def _open_standard_files() -> None:
    """Open the null device as each standard stream that is closed; libuv aborts when it closes a file of its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _files_for(connections: int) -> int:
    """Raise the process's limit of open files as far as allowed; return the connections that it has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(min(connections, soft - _SPARE_FILES), 1)


if __name__ == "__main__":
    cli.run(main)
