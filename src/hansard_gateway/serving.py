"""Serving HTTP by uvicorn, until it is told to stop and all have been answered."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import TimerHandle
from functools import partial
from typing import Any, Final

import grpc
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hansard_gateway.app import create_app
from hansard_gateway.settings import KIB, Options
from hansard_gateway.upstream import Stopping, Upstream, open_blocking_channel, open_channel

_log = logging.getLogger("hansard.gateway")

_HEADERS_MAX_BYTES: Final = 64 * KIB
_HEADERS_TIMEOUT_S: Final = 20.0
_CUT_SHARE: Final = 0.8


class Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds for headers: neither endless nor at leisure.

    `_header_timer` runs while a request's headers, or the rest of a refused body, are awaited.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request's headers."""
        super().connection_made(transport)
        self._header_timer: TimerHandle | None = None
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of headers are counted."""
        cycle: Any = self.cycle
        if self._header_timer is None and (cycle is None or cycle.response_complete):
            self._wait_for_headers()
        in_headers = self._header_timer is not None and not (cycle and cycle.more_body)
        super().data_received(data)
        if in_headers and self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > _HEADERS_MAX_BYTES:
                self.send_400_response("The headers are too large.")

    def on_headers_complete(self) -> None:
        """Stop waiting for headers."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Let the rest of a body that was refused come for a while.

        A connection that is closed while its client sends is reset, and the answer with it.
        """
        if self.cycle.more_body:
            self._wait_for_headers()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        """The body is complete: the next request may take its time."""
        if self.cycle.response_complete:
            self._stop_waiting()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(_HEADERS_TIMEOUT_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        self.transport.abort()


class Gateway:
    """A gateway that serves in this process, on a socket that is bound."""

    def __init__(
        self,
        listener: socket.socket,
        target: str,
        options: Options,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        """Serve on the listener, which is closed at the end, for the server at the target.

        `certificate`: files with a certificate and its key, for HTTPS.
        """
        self._listener = listener
        self._stopping = Stopping()
        self._options = options
        self._target = target
        self._credentials = credentials
        self._certificate = certificate
        self._server: uvicorn.Server | None = None

    async def run(self) -> None:
        """Serve until `stop` is called and all have been answered, or the deadline is over."""
        certificate, key = self._certificate or (None, None)
        where = self._target, self._credentials
        async with open_channel(*where) as channel:
            upstream = Upstream(
                channel, partial(open_blocking_channel, *where), self._options, self._stopping
            )
            config = uvicorn.Config(
                create_app(upstream),
                http=Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                limit_concurrency=self._options.connections_max,
                timeout_graceful_shutdown=max(1, int(self._options.drain_deadline_s * _CUT_SHARE)),
            )
            self._server = _Server(config)
            if self._stopping.begun:
                self._server.should_exit = True
            try:
                await self._server.serve([self._listener])
            finally:
                upstream.close()

    def stop(self) -> None:
        """Begin to stop: streams end with the place to resume from."""
        self._stopping.begin()
        if self._server is not None:
            self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's, without its hold on signals: whoever starts it has one."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


async def serve_until(gateway: Gateway, ended: asyncio.Event) -> None:
    """Serve until the event is set, then stop."""
    running = asyncio.create_task(gateway.run())
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    gateway.stop()
    waiting.cancel()
    await running
