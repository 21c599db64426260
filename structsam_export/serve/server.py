"""The process that listens: uvicorn, which ends when it is told to and answers first what it accepted."""

from __future__ import annotations

import asyncio
import logging.config
import socket
from collections.abc import Mapping
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from structsam_export.console import echo
from structsam_export.errors import OutputError
from structsam_export.serve.app import application
from structsam_export.serve.exports import Served
from structsam_export.serve.logs import configuration, log
from structsam_export.serve.settings import Settings

HEAD_SECONDS = 15  # that a client may take for a request's head, or for being there without asking anything
MARGIN = 5  # seconds after the last request's time is over


class Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the head of a request; this one leaves clients that are late with it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._head is None:  # the first bytes of a head, not all of it
            self._head = self.loop.call_later(HEAD_SECONDS, self._late)
        elif not waiting:
            self._forget()

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _forget(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Says where it listens, and tells its application when it ends."""

    def __init__(self, config: uvicorn.Config, app: Starlette, exports: Mapping[str, Served]) -> None:
        super().__init__(config)
        self.app, self.exports = app, exports

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            shown = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log("listening", address=shown, exports=list(self.exports))
            echo(f"{', '.join(self.exports)}: {shown}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.api.ending = True
        log("ending", connections=len(self.server_state.connections))
        await super().shutdown(sockets)
        log("ended", requests=self.server_state.total_requests)


def serve(exports: Mapping[str, Served], settings: Settings) -> None:
    """Listen until SIGTERM or SIGINT; what was accepted by then is answered.

    Raises:
        OutputError: the address cannot be had.
    """
    listening = _bound(settings)
    logging.config.dictConfig(configuration())
    app = application(exports, settings)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.timeout + settings.body_seconds) + MARGIN,
        backlog=256,
    )
    server = Server(config, app, exports)
    try:
        asyncio.run(server.serve([listening]))
    except KeyboardInterrupt:  # uvicorn hands the signal on when all is done
        if not server.started:
            raise
    finally:
        listening.close()


def _bound(settings: Settings) -> socket.socket:
    """A listening socket, so that a taken port is said before anything else happens."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family[0], socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(family[4])
    except OSError as error:
        why = error.strerror or error
        raise OutputError(
            f"Cannot listen on {settings.host}:{settings.port} ({why}). Pass another --host or --port."
        ) from None
    return bound
