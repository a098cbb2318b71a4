"""When a request is sent again: a server that is busy, and connections that fail.

Every request may be repeated, because none has an effect on the server. The waits grow as 2^n to a cap, and are drawn
at random below that, so that clients that were turned away together do not return together:
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from datetime import timezone
from typing import Any, NamedTuple

import httpx

from .errors import ServerTimeoutError, UnreachableError, gave_up

_BUSY = (429, 503)
_FIRST_WAIT = 0.5  # seconds
_TIMEOUTS = (httpx.ReadTimeout, httpx.WriteTimeout)  # the server may be at work on the request still


class Retries(NamedTuple):
    """most: number of repeats. cap: longest wait in seconds. random: draws from [0, 1)."""

    most: int
    cap: float
    random: Callable[[], float]

    def wait(self, repeats: int, outcome: httpx.Response | httpx.RequestError) -> float | None:
        """Return the seconds to wait before the request is sent again; None: the outcome stands.

        repeats: how often the request was repeated so far. A wait that the server asks for is kept, and a random one
        added. If it is longer than the cap, the outcome stands, and its error says when to call again.
        """
        if repeats >= self.most:
            return None
        wait = self.random() * min(_FIRST_WAIT * 2**repeats, self.cap)
        if isinstance(outcome, httpx.RequestError):
            return wait if isinstance(outcome, httpx.TransportError) and not isinstance(outcome, _TIMEOUTS) else None
        if outcome.status_code not in _BUSY:
            return None
        if gave_up(outcome.status_code, _error(outcome)):
            return None
        asked = retry_after(outcome) or 0.0
        return asked + wait if asked <= self.cap else None


def _error(response: httpx.Response) -> Mapping[str, Any]:
    """Return the error of an answer; empty for an answer that is not of this protocol, as a proxy's."""
    try:
        error = json.loads(response.content)["error"]
    except (ValueError, TypeError, LookupError):
        return {}
    return error if isinstance(error, dict) else {}


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, given as seconds or as a date; None without a readable one.

    A date is compared with the server's own clock, if the answer has a Date.
    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    date = _seconds(value)
    if date is None:
        return None
    now = _seconds(response.headers.get("Date", ""))
    return max(date - (time.time() if now is None else now), 0.0)


def _seconds(date: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except ValueError:  # a header that is no date says nothing
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def response_of(outcome: httpx.Response | httpx.RequestError, address: str) -> httpx.Response:
    """Return the response; raise UnreachableError or ServerTimeoutError for a request that got none."""
    if isinstance(outcome, httpx.Response):
        return outcome
    reason = f"{type(outcome).__name__}: {outcome}".rstrip(": ")
    if isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, httpx.ConnectTimeout):
        raise ServerTimeoutError(
            f"timeout: expected an answer from {address} in time, got none ({reason}); give more time, or fewer texts"
        ) from outcome
    raise UnreachableError(
        f"url: expected a server at {address}, got no connection ({reason}); start it with python -m glimodern.serve, "
        "or check the address"
    ) from outcome
