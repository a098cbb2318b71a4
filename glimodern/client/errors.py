"""What a call of a server may raise: `ServerError`, and its kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TEXT = re.compile(r"texts\[(\d+)\]")


class ServerError(Exception):
    """A server's refusal, or no answer of it.

    status: the HTTP status; None if no answer came. field, expected, got: the argument that the server names, what it
    takes, and what it got; None if it names none. message: what str() gives. index: the text that failed alone, counted
    in the caller's list; None if the whole request failed. retry_after: seconds after which the server asks to be
    called again. request_id: the server's name for the request, as in its log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        index: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.field = field
        self.expected = expected
        self.got = got
        self.index = index
        self.retry_after = retry_after
        self.request_id = request_id


class RefusedError(ServerError, ValueError):
    """An argument that the server refused (400, 413 or 422)."""


class NotAuthorizedError(ServerError):
    """No token, or one that the server does not know (401)."""


class ServerBusyError(ServerError):
    """A server that is loading, draining or has too much to do (429 or 503), after all repeats."""


class ServerTimeoutError(ServerError, TimeoutError):
    """An answer that did not come in time: the server said so (408, or 503), or the client waited in vain."""


class UnreachableError(ServerError, ConnectionError):
    """A connection that could not be made, or broke, after all repeats."""


class UnreadableAnswerError(ServerError):
    """An answer that is not of this protocol: another server, or a proxy before it."""


_KINDS: dict[int, type[ServerError]] = {
    400: RefusedError,
    401: NotAuthorizedError,
    408: ServerTimeoutError,
    413: RefusedError,
    422: RefusedError,
    429: ServerBusyError,
    503: ServerBusyError,
}


def gave_up(status: int, error: Mapping[str, Any]) -> bool:
    """Whether a server gave a request up because its time was over; sent again it would take as long."""
    return status == 503 and error.get("field") == "timeout"


def server_error(
    status: int,
    answer: Mapping[str, Any],
    *,
    first: int = 0,
    index: int | None = None,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> ServerError:
    """Return the exception of a server's error.

    answer: the object under "error". first: the caller's index of the request's first text, which is added to the
    indices that the server names. The others: see `ServerError`.
    """

    def counted(value: Any) -> str | None:
        if value is None:
            return None
        return _TEXT.sub(lambda match: f"texts[{int(match[1]) + first}]", str(value), count=1)

    message = counted(answer.get("message")) or f"the server answered {status}"
    kind = ServerTimeoutError if gave_up(status, answer) else _KINDS.get(status, ServerError)
    named = f"texts[{index}]"
    if index is not None and named not in message:
        message = f"{named}: {message}"
    return kind(
        message,
        status=status,
        field=counted(answer.get("field")),
        expected=None if answer.get("expected") is None else str(answer["expected"]),
        got=None if answer.get("got") is None else str(answer["got"]),
        index=index,
        retry_after=retry_after,
        request_id=request_id,
    )
