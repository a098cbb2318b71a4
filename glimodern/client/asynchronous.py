"""AsyncClient: entities of a server, several requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, overload

import httpx
from typing_extensions import Self, Unpack

from glimodern.inference.checks import check_count, check_flag
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


class AsyncClient:
    """`Client` with coroutines, for asyncio. One event loop may use it; `async with`, or `aclose`, ends connections.

    concurrency: the most requests at a time, of all calls together; a request that waits to be repeated counts. The
    other arguments, and what is raised: see `Client`.
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
        concurrency: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._connection = Connection(url, token, timeout, retries, max_wait, max_texts, max_bytes, random)
        self._concurrency = check_count("concurrency", concurrency, "a number of requests")
        self._slots = asyncio.Semaphore(self._concurrency)
        self._http = httpx.AsyncClient(**self._connection.http_settings(), transport=transport)
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @overload
    async def entities(  # type: ignore[overload-overlap] # a string is an iterable of strings too
        self, texts: str, labels: Labels, *, return_errors: bool = False, **options: Unpack[TextOptions]
    ) -> Entities: ...

    @overload
    async def entities(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        return_errors: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> list[Entities]: ...

    @overload
    async def entities(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        return_errors: bool,
        **options: Unpack[TextOptions],
    ) -> list[Entities | ServerError]: ...

    async def entities(
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
        return await self._ask(ENTITIES, texts, labels, return_errors, options, read_entities)

    @overload
    async def redact(  # type: ignore[overload-overlap] # a string is an iterable of strings too
        self,
        texts: str,
        labels: Labels,
        *,
        style: str = ...,
        return_errors: bool = False,
        **options: Unpack[TextOptions],
    ) -> Redaction: ...

    @overload
    async def redact(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        style: str = ...,
        return_errors: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> list[Redaction]: ...

    @overload
    async def redact(
        self,
        texts: Iterable[str],
        labels: Labels,
        *,
        style: str = ...,
        return_errors: bool,
        **options: Unpack[TextOptions],
    ) -> list[Redaction | ServerError]: ...

    async def redact(
        self, texts: str | Iterable[str], labels: Labels, *, return_errors: bool = False, **options: Any
    ) -> Any:
        """Replace the entities of one text, or of each of several.

        style: "placeholder" ("[PERSON_1]"; the server's default), "mask" ("*" for each character) or "pseudonym" (a
        name that the server gives this entity in every text). The others: see `entities`.
        """
        return await self._ask(REDACT, texts, labels, return_errors, options, read_redaction)

    async def models(self) -> list[ModelInfo]:
        """Return the models that the server holds."""
        return read_response(await self._send(Call("/v1/models")), read_models)

    async def ready(self) -> bool:
        """Return whether the server answers requests now: not while it loads or drains, nor when nothing listens.

        Asks once. Raises ServerError for another answer than those.
        """
        return read_ready(await self._try(Call("/readyz")), self._connection.url)

    async def _ask(
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
        answers: dict[int, Answers] = {}
        left = iter(enumerate(calls))

        async def work() -> None:
            for number, call in left:
                answers[number] = read_answers(call, await self._send(call), read, keep)

        workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(calls)))]
        try:
            await asyncio.gather(*workers)
        finally:  # after an error, or when the caller is cancelled, no request goes on
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        values = gather((answers[number] for number in range(len(calls))), stacklevel=3)
        return values[0] if calls and calls[0].texts is None else values

    async def _send(self, call: Call) -> httpx.Response:
        """Send a call, again if need be."""
        async with self._slots:
            repeats = 0
            outcome = await self._try(call)
            while (wait := self._connection.retries.wait(repeats, outcome)) is not None:
                await self._sleep(wait)
                repeats += 1
                outcome = await self._try(call)
        return response_of(outcome, self._connection.url)

    async def _try(self, call: Call) -> httpx.Response | httpx.RequestError:
        try:
            return await self._http.send(self._connection.request(self._http, call))
        except httpx.RequestError as error:  # a value, for `Retries.wait` to judge and `response_of` to raise
            return error
