"""Client of `python -m glimodern.serve`: the entities of `GLiModern.predict`, asked over HTTP; no torch is imported.

    from glimodern.client import Client

    with Client("http://127.0.0.1:8000") as client:
        entities = client.entities("Ada Lovelace met Charles Babbage in London.", ["person", "city"])

`AsyncClient` has the same methods as coroutines. `errors` lists what they raise. Needs the extra `client` (httpx).
"""

from glimodern.inference.redaction import Redaction

from .answers import ModelInfo
from .asynchronous import AsyncClient
from .blocking import Client
from .calls import TextOptions
from .errors import (
    NotAuthorizedError,
    RefusedError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
    UnreadableAnswerError,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ModelInfo",
    "NotAuthorizedError",
    "Redaction",
    "RefusedError",
    "ServerBusyError",
    "ServerError",
    "ServerTimeoutError",
    "TextOptions",
    "UnreachableError",
    "UnreadableAnswerError",
]
