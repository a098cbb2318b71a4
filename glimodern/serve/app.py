"""The routes of the server, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from .access import Access, ClientGoneError
from .body import Limits, read_body
from .errors import AnswerError
from .metrics import CONTENT_TYPE, Metrics
from .openapi import openapi
from .page import page, page_headers
from .service import Service

_DISCARDED = 8  # times the maximum size: such a body is read and discarded, so that the client can read its answer
_BODIES = 64  # bodies of the maximum size that may be held at a time; smaller ones may be more


class App:
    """The handlers of the routes.

    token, hosts: see `Access`. connections(): the number of open connections, for metrics.
    """

    def __init__(
        self,
        service: Service,
        limits: Limits,
        metrics: Metrics,
        *,
        token: str | None = None,
        hosts: Sequence[str] | None = None,
        connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self.service, self.limits, self.metrics = service, limits, metrics
        self._connections = connections
        self._body_bytes = 0  # held by requests that are being read or answered
        routes = {
            "/": self.page,
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics_text,
            "/openapi.json": self.openapi,
            "/v1/models": self.models,
        }
        posts = {"/v1/entities": self.entities, "/v1/redact": self.redact}
        self.asgi: ASGIApp = Access(
            Router(
                [
                    *(Route(path, handler, methods=["GET"]) for path, handler in routes.items()),
                    *(Route(path, handler, methods=["POST"]) for path, handler in posts.items()),
                ],
                redirect_slashes=False,
            ),
            token=token,
            hosts=hosts,
            metrics=metrics,
            paths=frozenset((*routes, *posts)),
        )

    # answers about the server

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page(), headers=page_headers())

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        return JSONResponse({"status": self.service.status}, 200 if self.service.status == "ready" else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(self.service.engine, self._connections()), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(self.limits))

    async def models(self, request: Request) -> Response:
        self.service.model_of(None)
        return JSONResponse({"models": self.service.describe()})

    # answers about texts

    async def entities(self, request: Request) -> Response:
        return await self._answer(request, redacts=False)

    async def redact(self, request: Request) -> Response:
        return await self._answer(request, redacts=True)

    async def _answer(self, request: Request, *, redacts: bool) -> Response:
        self.service.check_room()  # before the body is read
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site can send other types without asking
            raise AnswerError.of("content-type", "application/json", repr(kind[:80]), status=415)
        if self._body_bytes > _BODIES * self.limits.max_body:
            raise AnswerError(
                429, "server: too many large requests at a time; try again later", retry_after=1, close=True
            )
        content = b""
        try:
            content = await self._read(request)
            body = read_body(content, self.limits, redacts=redacts)
            answer = self.service.answer(body, self.limits, redacts=redacts)
            value = await _unless_gone(answer, request, body.timeout)
        finally:
            self._body_bytes -= len(content)
        results = [value] if body.one_text else value["results"]
        found = sum(len(result.get("entities", ())) for result in results)
        failed = sum("error" in result for result in results)
        name = value["model"]
        self.metrics.texts.labels(name).inc(len(results))
        self.metrics.texts_failed.labels(name).inc(failed)
        self.metrics.entities.labels(name).inc(found)
        request.state.log.update(model=name, texts=len(results), entities=found, failed=failed)
        return JSONResponse(value)

    async def _read(self, request: Request) -> bytes:
        """Read the body, within its limits of size and time.

        A body that is too large is read and discarded, within another limit: a client that still sends would not see
        the answer.
        """
        most = self.limits.max_body
        too_large = AnswerError.of("body", f"at most {most} bytes", "more", "send fewer texts", status=413, close=True)
        length = request.headers.get("content-length", "0")
        known = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
        if len(length) >= 20 or known > _DISCARDED * most or (known > most and "expect" in request.headers):
            raise too_large
        parts, held, total = list[bytes](), 0, 0

        async def receive() -> None:
            nonlocal held, total
            async for part in request.stream():
                total += len(part)
                if total > _DISCARDED * most:
                    raise too_large
                if total <= most:
                    parts.append(part)
                    held += len(part)
                    self._body_bytes += len(part)
            if total > most:
                raise AnswerError.of("body", f"at most {most} bytes", f"{total}", "send fewer texts", status=413)

        try:
            await asyncio.wait_for(receive(), self.limits.body_timeout)
        except BaseException as error:
            self._body_bytes -= held
            if isinstance(error, asyncio.TimeoutError):
                wanted, got = f"all of it within {self.limits.body_timeout:g} s", f"{total} bytes by then"
                raise AnswerError.of("body", wanted, got, status=408, close=True) from error
            if isinstance(error, ClientDisconnect):
                raise ClientGoneError from error
            raise
        return b"".join(parts)


async def _unless_gone(answer: Coroutine[Any, Any, dict[str, Any]], request: Request, timeout: float) -> dict[str, Any]:
    """Return the answer; cancel it if the client goes away or the time is over."""
    answering, going = asyncio.ensure_future(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, going), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        if going.done():
            raise ClientGoneError
        raise AnswerError.of(
            "timeout", f"an answer within {timeout:g} s", "none", "try again later", 503, retry_after=1
        )
    finally:
        going.cancel()
        if answering.cancel():
            await asyncio.wait((answering,))
