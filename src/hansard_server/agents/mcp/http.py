"""HTTP as MCP servers are called: to addresses that the guard has checked, with bounded answers."""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import cast

import httpcore2
import httpx2

from hansard_server.agents.outgoing import AddressRefused, AddressUnknown, OutgoingGuard
from hansard_server.domain.limits import MIB

ANSWER_MAX_BYTES = 16 * MIB
"""Of one HTTP response, events of a stream together."""
_CONNECTIONS = 16
_CONNECT_S = 10.0
_READ_S = 3_600.0


class AnswerTooLarge(Exception):  # noqa: N818 - reads as what happened
    """A response has more bytes than are taken, or comes in a form that may grow to more."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to what the guard allows; every connection of a client goes through it."""

    def __init__(
        self, guard: OutgoingGuard, connector: httpcore2.AsyncNetworkBackend | None = None
    ) -> None:
        """Connect by `connector`, which is given addresses and never names."""
        self._guard = guard
        self._connector = connector or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Return a connection. Raises AddressRefused, and what the connector raises."""
        try:
            addresses = await self._guard.addresses(host, port)
        except AddressUnknown as error:
            raise httpcore2.ConnectError(str(error)) from None
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                return await self._connector.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raise AddressRefused."""
        del path, timeout, socket_options
        raise AddressRefused("files are not called")

    async def sleep(self, seconds: float) -> None:
        """Return after this time."""
        await self._connector.sleep(seconds)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """httpx's own transport over the guarded backend, without proxies of the environment."""

    def __init__(self, backend: GuardedBackend) -> None:
        """Open connections by `backend`."""
        super().__init__(verify=_ssl_context(), trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=30.0,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response, whose bytes are counted while they are read."""
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise AnswerTooLarge("the answer is compressed, though that was not asked for")
        response.stream = _Counted(cast("httpx2.AsyncByteStream", response.stream))
        return response


class _Counted(httpx2.AsyncByteStream):
    """The bytes of a response, up to the limit."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > ANSWER_MAX_BYTES:
                raise AnswerTooLarge(f"the answer has more than {ANSWER_MAX_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def make_client(backend: GuardedBackend, headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """Return a client of one server, with these headers in each request."""
    return httpx2.AsyncClient(
        transport=GuardedTransport(backend),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(_CONNECT_S, read=_READ_S),
        trust_env=False,
        follow_redirects=False,
    )


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # Reading the system's authorities takes tens of milliseconds.
    return httpx2.create_ssl_context(trust_env=False)
