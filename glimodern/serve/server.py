"""The uvicorn server: it listens while the models are loaded, and drains at SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from .connections import Connections
from .service import Service

_LOGGER = logging.getLogger("glimodern.serve")


def uvicorn_config(
    app: ASGIApp, connections: Connections, *, host: str, port: int, drain_seconds: float
) -> uvicorn.Config:
    """Return uvicorn's settings. drain_seconds: to answer the requests in the queue at the end."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=connections.protocol,  # type: ignore[arg-type]  # a function that creates the protocol
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(int(connections.head_seconds), 1),
        timeout_graceful_shutdown=max(int(drain_seconds), 1),
    )


class Server(uvicorn.Server):
    """uvicorn's server of a `Service`. failure: the error that loading the models raised."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.failure: Exception | None = None
        self._loading = threading.Thread(target=self._load, name="glimodern-load", daemon=True)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn raises the signals that it caught again when it is done; after SIGTERM the process ends as usual
        previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            super().run(sockets)
        finally:
            if self._loading.ident is not None:  # PyTorch ends the process if it computes while the interpreter ends
                self._loading.join(self.config.timeout_graceful_shutdown)
            signal.signal(signal.SIGTERM, previous)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            address = self.servers[0].sockets[0].getsockname()
            _LOGGER.info("listening", extra={"host": address[0], "port": address[1]})
            self._loading.start()

    def _load(self) -> None:
        try:
            self.service.load()
        except Exception as error:
            if self.service.status == "loading":  # else the server ends anyway
                self.failure = error
                self.should_exit = True
            return
        _LOGGER.info("ready", extra={"models": list(self.service.models)})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _LOGGER.info("draining", extra={"requests": self.service.engine.queued_calls})
        await super().shutdown(sockets)
        _LOGGER.info("stopped")
