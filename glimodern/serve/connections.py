"""HTTP connections with limits: of their number, of a request's head, and of the time that it may take.

uvicorn closes a connection that is idle after an answer. It waits for ever for a first request and for the rest of a
head, and reads a head of any length. Here such a connection is closed too. A new connection beyond the limit takes the
place of the one that is idle longest, so that idle ones never shut others out; if none is idle, its request is answered
with 503.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 * 1024
_REFUSED = 256  # connections beyond the limit that are answered; more are closed without an answer
_LINGER_SECONDS = 1.0  # a connection is closed so long after its refusal: closed at once, the answer might be lost
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connections:
    """The open connections of a server.

    limit: most of them. head_seconds: most seconds that a connection may take to send a request's head, and that it may
    be idle.
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
        self._head_bytes: int | None = 0  # of the head being received; None: a request is being answered
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False  # whether what arrives is no longer read

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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_bytes = 0
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

    def _refuse(self, answer: bytes) -> None:
        self._stop_waiting()
        self._refused = True
        self.transport.write(answer)
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._close)
