"""What both clients share: the checked address, token, bounds and waits."""

from __future__ import annotations

import os
import random as random_module
from collections.abc import Callable
from typing import Any, TypedDict

import httpx

from glimodern.display import short
from glimodern.inference.checks import check_count, check_string
from glimodern.version import __version__

from .calls import Bounds, Call, check_seconds
from .retries import Retries

TOKEN_VARIABLE = "GLIMODERN_TOKEN"
TIMEOUT = 90.0  # seconds; a server gives a request up after 60, if it is not told otherwise
RETRIES = 4
MAX_WAIT = 30.0  # seconds
MAX_TEXTS = 64
MAX_BYTES = 1 << 20
_CONNECT = 10.0  # seconds for a connection
_GRACE = 5.0  # seconds for the way, beyond those that the server may take


class _HttpSettings(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    trust_env: bool


class Connection:
    """A server's address and how it is called. `Client` documents the arguments.

    Raises TypeError or ValueError with the name of the argument, and never with the token.
    """

    def __init__(
        self,
        url: Any,
        token: Any,
        timeout: Any,
        retries: Any,
        max_wait: Any,
        max_texts: Any,
        max_bytes: Any,
        random: Callable[[], float] | None,
    ) -> None:
        self.url = _check_url(url)
        self.timeout = check_seconds("timeout", timeout)
        self.bounds = Bounds(
            check_count("max_texts", max_texts, "a number of texts"),
            check_count("max_bytes", max_bytes, "a number of bytes"),
        )
        most = check_count("retries", retries, "a number of repeats", 0)
        # a generator of its own: random numbers of the program stay as they are
        self.retries = Retries(most, check_seconds("max_wait", max_wait), random or random_module.SystemRandom().random)
        self._token = _check_token(os.environ.get(TOKEN_VARIABLE) if token is None else token)

    def http_settings(self) -> _HttpSettings:
        """Return the arguments of httpx's clients.

        Proxies and certificates are those of the transport: the environment does not change whom a token is sent to.
        """
        headers = {"User-Agent": f"glimodern/{__version__}", "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return {"base_url": self.url, "headers": headers, "timeout": self._wait(self.timeout), "trust_env": False}

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        """Build the HTTP request of a call."""
        if call.body is None:
            return http.build_request("GET", call.path)
        timeout = self.timeout if call.timeout is None else call.timeout + _GRACE
        return http.build_request(
            "POST",
            call.path,
            content=call.body,
            headers={"Content-Type": "application/json"},
            timeout=self._wait(timeout),
        )

    @staticmethod
    def _wait(seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(seconds, _CONNECT), pool=None)


def _check_url(url: Any) -> str:
    expected = "an address such as 'http://127.0.0.1:8000'"
    text = check_string(url, "url")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: expected {expected}, got {short(text)} ({error})") from None
    if parsed.userinfo:
        raise ValueError(f"url: expected {expected} without a user or password, got one; give a token")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ValueError(f"url: expected {expected}, got {short(text)}")
    return text


def _check_token(token: Any) -> str | None:
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"token: expected a string, got {type(token).__name__}")
    token = token.strip()  # a file or variable may end with a line end
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            "token: expected ASCII characters without spaces, got none or others (not shown); "
            f"check the argument, or the environment variable {TOKEN_VARIABLE}"
        )
    return token
