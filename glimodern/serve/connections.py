"""HTTP connections with limits: of their number, of a request's head, and of the time that it may take.

uvicorn closes a connection that is idle after an answer. It waits for ever for a first request, for the rest of a head
and for a client that does not read its answer, and reads a head of any length. Here such a connection is closed too. A
new connection beyond the limit takes the place of the one that is idle longest, so that idle ones never shut others
out; if none is idle, its request is answered with 503.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import AnswerError

_HEAD_BYTES = 64 * 1024
_REFUSED = 256  # connections beyond the limit that are answered; more are closed without an answer
_LINGER_SECONDS = 1.0  # a connection is closed so long after its refusal: closed at once, the answer might be lost
_TOO_LARGE = AnswerError(431, f"request: expected a head of at most {_HEAD_BYTES} bytes, got more", close=True)
_UPGRADE = AnswerError.of("upgrade", "no such header with a body", "one", "ask in HTTP/1.1", status=400, close=True)
_TOO_MANY = AnswerError(503, "server: too many open connections; try again later", retry_after=1, close=True)


class Connections:
    """The open connections of a server.

    limit: most of them. head_seconds: most seconds that a connection may take to send a request's head, that it may be
    idle, and that its client may read nothing of an answer.
    """

    def __init__(self, limit: int, head_seconds: float) -> None:
        self.limit, self.head_seconds = limit, head_seconds
        self.open = 0
        self.idle: OrderedDict[LimitedProtocol, None] = OrderedDict()  # without a request; the oldest first

    def protocol(self, *args: Any, **kwargs: Any) -> LimitedProtocol:
        """Create the protocol of a new connection, as uvicorn asks for it."""
        return LimitedProtocol(self, *args, **kwargs)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits of `Connections`."""

    def __init__(self, shared: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = shared
        self._head_bytes = 0  # received since the last part of a body, or the end of a head or a request
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes of answers, when it was last looked
        self._unsent_timer: asyncio.TimerHandle | None = None
        self._refusal: AnswerError | None = None  # given one, what arrives is no longer read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.shared.open += 1
        if self.shared.open > self.shared.limit:
            if self.shared.idle:
                oldest, _ = self.shared.idle.popitem(last=False)
                oldest.transport.close()
            elif self.shared.open > self.shared.limit + _REFUSED:
                transport.abort()
                return
            else:
                self._refuse(_TOO_MANY)
                return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.open -= 1
        self._stop_waiting()
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _HEAD_BYTES and self._refusal is None and not self.transport.is_closing():
            self._refuse_next(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._stop_waiting()
        upgrades = self.parser.should_upgrade()
        names = {name for name, _ in self.headers}
        if upgrades and not names.isdisjoint((b"content-length", b"transfer-encoding")):
            self._refuse_next(_UPGRADE)  # the parser reads no body behind such a head
            return
        super().on_headers_complete()
        if upgrades:  # nor another request
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._refusal is None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        self._unsent_timer = (
            self.loop.call_later(self.shared.head_seconds, self._check_unsent) if self._unsent else None
        )
        if self.transport.is_closing() or not self._answered():
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        else:
            self._wait_for_head()

    def _answered(self) -> bool:
        """Return whether no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _check_unsent(self) -> None:
        """Close the connection if its client has read nothing of an answer since the last look."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent:
            self.transport.abort()
        elif unsent:
            self._unsent = unsent
            self._unsent_timer = self.loop.call_later(self.shared.head_seconds, self._check_unsent)

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self.shared.idle[self] = None
        self._timer = self.loop.call_later(self.shared.head_seconds, self._close)

    def _stop_waiting(self) -> None:
        self.shared.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse_next(self, error: AnswerError) -> None:
        """Refuse the request that arrives, when those before it are answered."""
        self._refusal = error
        if self._answered():
            self._refuse(error)

    def _refuse(self, error: AnswerError) -> None:
        self._stop_waiting()
        self._refusal = error
        self.transport.write(_response(error))
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._close)

    def send_400_response(self, msg: str) -> None:
        self.transport.write(
            _response(AnswerError(400, f"request: expected HTTP/1.1, got another ({msg.lower()})", close=True))
        )
        self.transport.close()


def _response(error: AnswerError) -> bytes:
    """Return the answer to a request that does not reach the application."""
    content = json.dumps(error.body()).encode()
    headers = {**error.headers(), "content-type": "application/json", "content-length": str(len(content))}
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + content
