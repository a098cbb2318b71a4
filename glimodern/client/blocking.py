"""Client: entities of a server, call by call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, overload

import httpx
from typing_extensions import Self, Unpack

from glimodern.inference.checks import check_flag
from glimodern.inference.entities import Entities
from glimodern.inference.redaction import Redaction
from glimodern.inputs.labels import Labels

from .answers import (
    Answers,
    ModelInfo,
    gather,
    read_answers,
    read_entities,
    read_models,
    read_ready,
    read_redaction,
    read_response,
)
from .calls import ENTITIES, REDACT, Call, TextOptions, text_calls
from .connection import MAX_BYTES, MAX_TEXTS, MAX_WAIT, RETRIES, TIMEOUT, Connection
from .errors import ServerError
from .retries import response_of


class Client:
    """A server of `python -m glimodern.serve`. Threads may share a client; `with`, or `close`, ends its connections.

    url: the server's address. token: what the server was started with; None: the environment variable GLIMODERN_TOKEN,
    if it is set. timeout: seconds that a request may take. retries: how often a request is sent again to a server that
    is busy (429, 503) or after a connection failed; max_wait: the longest wait in seconds before that. A server that
    asks for a longer one is not asked again. max_texts, max_bytes: bounds of a request; a longer list of texts is sent
    in several. transport: httpx's, for a proxy or certificates of your own. sleep, random: for tests.

    Raises TypeError or ValueError with the name of the argument; the calls raise `ServerError` and its kinds.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        max_wait: float = MAX_WAIT,
        max_texts: int = MAX_TEXTS,
        max_bytes: int = MAX_BYTES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._connection = Connection(url, token, timeout, retries, max_wait, max_texts, max_bytes, random)
        self._http = httpx.Client(**self._connection.http_settings(), transport=transport)
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def entities(  # type: ignore[overload-overlap] # a string is an iterable of strings too
        self, texts: str, labels: Labels, *, return_errors: bool = False, **options: Unpack[TextOptions]
    ) -> Entities: ...

    @overload
    def entities(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        return_errors: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> list[Entities]: ...

    @overload
    def entities(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        return_errors: bool,
        **options: Unpack[TextOptions],
    ) -> list[Entities | ServerError]: ...

    def entities(
        self,
        texts: str | Iterable[str],
        labels: Labels,
        *,
        return_errors: bool = False,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Find the entities of one text, or of each of several.

        labels, options: see `TextOptions`. return_errors: give a text that failed alone its ServerError in the list;
        otherwise the first is raised, with the text's index. What the server warns of is warned of once.
        """
        return self._ask(ENTITIES, texts, labels, return_errors, options, read_entities)

    @overload
    def redact(  # type: ignore[overload-overlap] # a string is an iterable of strings too
        self,
        texts: str,
        labels: Labels,
        *,
        style: str = ...,
        return_errors: bool = False,
        **options: Unpack[TextOptions],
    ) -> Redaction: ...

    @overload
    def redact(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        style: str = ...,
        return_errors: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> list[Redaction]: ...

    @overload
    def redact(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        style: str = ...,
        return_errors: bool,
        **options: Unpack[TextOptions],
    ) -> list[Redaction | ServerError]: ...

    def redact(self, texts: str | Iterable[str], labels: Labels, *, return_errors: bool = False, **options: Any) -> Any:
        """Replace the entities of one text, or of each of several.

        style: "placeholder" ("[PERSON_1]"; the server's default), "mask" ("*" for each character) or "pseudonym" (a
        name that the server gives this entity in every text). The others: see `entities`.
        """
        return self._ask(REDACT, texts, labels, return_errors, options, read_redaction)

    def models(self) -> list[ModelInfo]:
        """Return the models that the server holds."""
        return read_response(self._send(Call("/v1/models")), read_models)

    def ready(self) -> bool:
        """Return whether the server answers requests now: not while it loads or drains, nor when nothing listens.

        Asks once. Raises ServerError for another answer than those.
        """
        return read_ready(self._try(Call("/readyz")), self._connection.url)

    def _ask(
        self,
        path: str,
        texts: str | Iterable[str],
        labels: Labels,
        return_errors: bool,
        options: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Any],
    ) -> Any:
        keep = check_flag("return_errors", return_errors)
        calls = text_calls(path, texts, labels, options, self._connection.bounds)

        def parts() -> Iterator[Answers]:
            for call in calls:
                yield read_answers(call, self._send(call), read, keep)

        values = gather(parts(), stacklevel=3)
        return values[0] if calls and calls[0].texts is None else values

    def _send(self, call: Call) -> httpx.Response:
        """Send a call, again if need be."""
        repeats = 0
        outcome = self._try(call)
        while (wait := self._connection.retries.wait(repeats, outcome)) is not None:
            self._sleep(wait)
            repeats += 1
            outcome = self._try(call)
        return response_of(outcome, self._connection.url)

    def _try(self, call: Call) -> httpx.Response | httpx.RequestError:
        try:
            return self._http.send(self._connection.request(self._http, call))
        except httpx.RequestError as error:  # a value, for `Retries.wait` to judge and `response_of` to raise
            return error
