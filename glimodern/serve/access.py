"""The outermost layer of the server: authorisation, request ids, logs, metrics, and error answers."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import AnswerError
from .metrics import Metrics

_LOGGER = logging.getLogger("glimodern.serve")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_OPEN = ("/healthz", "/readyz")  # for probes, which call the server by any name
_GONE = 499  # logged and counted for a client that went away; never sent


class ClientGoneError(Exception):
    """The client went away before it was answered."""


class Access:
    """ASGI middleware. token: the bearer token that `/v1/*` and `/metrics` ask for; None: none.

    hosts: the names by which the server may be called; None: any. A page of another site, whose name was pointed at
    this machine, calls it by that name. paths: the known paths, for metrics; others are counted as "other".
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Sequence[str] | None,
        metrics: Metrics,
        paths: frozenset[str],
    ) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["app"] = self  # routes raise for an unknown path or method then, instead of answering in plain text
        scope.setdefault("state", {})["log"] = log = {"request_id": request_id}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            try:
                self._check_host(scope["path"], headers.get(b"host", b"").decode("latin-1"))
                self._authorise(scope["path"], headers.get(b"authorization", b""))
                await self.app(scope, receive, send_with_id)
            except AnswerError as error:
                await _send_error(error, scope, receive, send_with_id)
            except HTTPException as error:  # of routing: 404, 405
                message = f"{scope['method']} {scope['path'][:80]}: {error.detail.lower()}"
                routing = AnswerError(error.status_code, message)
                await _send_error(routing, scope, receive, send_with_id, dict(error.headers or {}))
            except ClientGoneError:
                status = _GONE
                self.metrics.gone.inc()
            except Exception:
                _LOGGER.exception("internal error", extra=log)
                if status:  # the answer has begun
                    raise
                internal = AnswerError(500, f"internal error; see the server's log, request id {request_id}")
                await _send_error(internal, scope, receive, send_with_id)
        finally:
            self._count(scope, status, time.monotonic() - started, log)

    def _check_host(self, path: str, host: str) -> None:
        if self._hosts is None or path in _OPEN:
            return
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if name not in self._hosts:
            got = json.dumps(host[:80])
            raise AnswerError.of("host", "a name of this server", got, "start it with --allow-host NAME", status=421)

    def _authorise(self, path: str, authorization: bytes) -> None:
        if self._token is None or not (path.startswith("/v1/") or path == "/metrics"):
            return
        scheme, _, token = authorization.partition(b" ")
        if not hmac.compare_digest(token.strip(), self._token) or scheme.lower() != b"bearer":
            raise AnswerError(401, "authorization: expected the server's bearer token, got none or another")

    def _count(self, scope: Scope, status: int, seconds: float, log: dict[str, Any]) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, status or "none").inc()
        self.metrics.seconds.labels(path).observe(seconds)
        level = logging.DEBUG if path in (*_OPEN, "/metrics") else logging.INFO
        if _LOGGER.isEnabledFor(level):
            client = (scope.get("client") or ("",))[0]
            fields = {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1e3, 1)}
            _LOGGER.log(level, "request", extra={**fields, "client": client, **log})


async def _send_error(
    error: AnswerError, scope: Scope, receive: Receive, send: Send, headers: dict[str, str] | None = None
) -> None:
    response = JSONResponse(error.body(), error.status, {**error.headers(), **(headers or {})})
    await response(scope, receive, send)
