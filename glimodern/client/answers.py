"""Answers of a server, read as entities, redactions, models and errors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import httpx

from glimodern.display import first_line
from glimodern.inference.entities import Entities
from glimodern.inference.redaction import Redaction

from .calls import Call
from .errors import ServerError, UnreadableAnswerError, server_error
from .retries import response_of, retry_after

T = TypeVar("T")


class ModelInfo(NamedTuple):
    """A model that a server holds.

    default: whether it answers requests that name no model. dtype: of its weights. max_words: most words that it reads
    at once. max_width: most words of an entity; None: any number. max_types: most labels of a prompt in its training.
    calibrated: whether threshold="calibrated" is possible. adapters: names that requests for it may give as `adapter`.
    """

    name: str
    default: bool
    dtype: str
    max_words: int
    max_width: int | None
    max_types: int
    calibrated: bool
    adapters: list[str]


def read_entities(answer: Mapping[str, Any]) -> Entities:
    """Read a text's entities."""
    found = [
        {**entity, "start": int(entity["start"]), "end": int(entity["end"]), "score": float(entity["score"])}
        for entity in answer["entities"]
    ]
    return Entities(found, int(answer["words_cut"]), int(answer["windows"]))


def read_redaction(answer: Mapping[str, Any]) -> Redaction:
    """Read a redacted text."""
    return Redaction(str(answer["text"]), read_entities(answer))


def read_models(answer: Mapping[str, Any]) -> list[ModelInfo]:
    """Read the list of models. A newer server may tell more of them; that is left out."""
    return [ModelInfo(**{name: model[name] for name in ModelInfo._fields}) for model in answer["models"]]


def read_ready(outcome: httpx.Response | httpx.RequestError, address: str) -> bool:
    """Read whether a server is ready; one where nothing listens is not. Raises ServerError for other answers."""
    if isinstance(outcome, httpx.ConnectError):
        return False
    response = response_of(outcome, address)
    return response.status_code != 503 and read_response(response, lambda answer: bool(answer["status"] == "ready"))


class Answers(NamedTuple):
    """A request's answers, one a text, and the server's warnings."""

    values: list[Any]
    warnings: list[str]


def read_answers(
    call: Call, response: httpx.Response, read: Callable[[Mapping[str, Any]], Any], return_errors: bool
) -> Answers:
    """Read the answers to a call of `text_calls`: for each text what `read` makes of it.

    A text that failed alone gives a ServerError: as its answer with `return_errors`, else raised. Raises ServerError
    for a request that was refused whole.
    """

    def parts(answer: Mapping[str, Any]) -> Answers:
        said = list(map(str, answer["warnings"]))
        if call.texts is None:
            return Answers([read(answer)], said)
        results = answer["results"]
        if len(results) != call.texts:
            raise ValueError(f"{len(results)} results for {call.texts} texts")
        values = [_result(result, call.first, i, read) for i, result in enumerate(results)]
        return Answers(values, said)

    answers = read_response(response, parts, call.first)
    failed = [value for value in answers.values if isinstance(value, ServerError)]
    if failed and not return_errors:
        raise failed[0]
    return answers


def _result(result: Mapping[str, Any], first: int, number: int, read: Callable[[Mapping[str, Any]], Any]) -> Any:
    if "error" not in result:
        return read(result)
    return server_error(int(result["error"]["status"]), result["error"], first=first, index=first + number)


def read_response(response: httpx.Response, read: Callable[[Mapping[str, Any]], T], first: int = 0) -> T:
    """Return what `read` makes of a server's JSON object.

    Raises the ServerError of a status other than 200, and UnreadableAnswerError for what is not of this protocol.
    """
    status, request_id = response.status_code, response.headers.get("X-Request-ID")
    try:
        answer = json.loads(response.content)
        if status == 200:
            return read(answer)
        error = dict(answer["error"])
    except (ValueError, TypeError, LookupError, AttributeError) as problem:
        kind = response.headers.get("Content-Type", "no type")
        raise UnreadableAnswerError(
            f"url: expected an answer of glimodern.serve from {_address(response)}, got status {status}, {kind} "
            f"({type(problem).__name__}: {first_line(problem)}); check the address, and what stands before the server",
            status=status,
            request_id=request_id,
            retry_after=retry_after(response),
        ) from problem
    raise server_error(status, error, first=first, retry_after=retry_after(response), request_id=request_id)


def _address(response: httpx.Response) -> str:
    return str(response.request.url)


def gather(parts: Iterable[Answers], stacklevel: int) -> list[Any]:
    """Return the answers of all requests as one list; warn of each thing that the server warned of, once."""
    values: list[Any] = []
    said: dict[str, None] = {}
    for part in parts:
        values += part.values
        said |= dict.fromkeys(part.warnings)
    for message in said:
        warnings.warn(message, stacklevel=stacklevel + 1)
    return values
