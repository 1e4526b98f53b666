"""One connection to an MCP server: opened when it is needed, held by a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any, TypeVar

import anyio
import httpx2
import mcp_types
from mcp.client.client import Client
from mcp.client.session import ClientSession, IncomingMessage
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from hansard_server.agents.connections import McpServer
from hansard_server.agents.mcp.http import (
    ANSWER_MAX_BYTES,
    AnswerTooLarge,
    GuardedBackend,
    make_client,
)
from hansard_server.agents.outgoing import AddressRefused, AddressUnknown

T = TypeVar("T")
Transport = AbstractAsyncContextManager[Any]
_CANCEL_PATIENCE_S = 1.0
_MESSAGE_MAX_CHARACTERS = 2_000


class ServerFailed(Exception):  # noqa: N818 - reads as what happened
    """The server did not do what it was asked; the message is for the model.

    `code`: of the server's own error; 0: it gave none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message[:_MESSAGE_MAX_CHARACTERS])
        self.code = code


@contextlib.asynccontextmanager
async def open_transport(
    server: McpServer, backend: GuardedBackend, on_closed: Callable[[], None]
) -> AsyncIterator[Any]:
    """Give the two streams of a transport to the server.

    `on_closed` is called when a command has ended; over HTTP each request is by itself.
    """
    if server.command:
        parameters = StdioServerParameters(
            command=server.command,
            args=list(server.args),
            env={name: value.get_secret_value() for name, value in server.env.items()},
            cwd=server.cwd,
        )
        async with stdio_client(parameters) as (read, write), _watched(read, on_closed) as watched:
            yield watched, write
        return
    headers = {name: value.get_secret_value() for name, value in server.headers.items()}
    async with (
        make_client(backend, headers) as client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=ANSWER_MAX_BYTES
        ) as streams,
    ):
        yield streams


@contextlib.asynccontextmanager
async def _watched(read: Any, on_closed: Callable[[], None]) -> AsyncIterator[Any]:
    """Give the stream's messages, and say when it ends: the SDK keeps that to itself."""
    send, receive = anyio.create_memory_object_stream[Any](0)

    async def pass_on() -> None:
        async with send:
            async for message in read:
                await send.send(message)
        on_closed()

    task = asyncio.create_task(pass_on(), name="mcp-messages")
    try:
        yield receive
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        receive.close()


class McpConnection:
    """A connection that comes back when it broke between two requests."""

    def __init__(
        self,
        open_transport: Callable[[Callable[[], None]], Transport],
        *,
        connect_s: float,
        on_list_changed: Callable[[], None],
    ) -> None:
        """Connect by `open_transport`, within `connect_s` seconds; it is given what to call when
        the server has closed the connection.
        """
        self._open_transport = open_transport
        self._connect_s = connect_s
        self._on_list_changed = on_list_changed
        self._lock = asyncio.Lock()
        self._held: _Held | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def request(self, work: Callable[[ClientSession], Awaitable[T]]) -> T:
        """Return what the work comes to; cancelled, the server is told so. Raises ServerFailed."""
        held = await self._connect()
        task = asyncio.ensure_future(work(held.session))
        try:
            await asyncio.wait((task, held.task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except ServerFailed:
            raise
        except Exception as error:
            if isinstance(error, MCPError) and error.code == mcp_types.CONNECTION_CLOSED:
                held.let_go()
            raise _failed(held.reason, error) from error
        finally:
            await _cancelled(task)
        raise ServerFailed(held.reason or "The server has gone.")

    async def close(self) -> None:
        """Close what is open."""
        held = self._held
        if held is not None:
            held.let_go()
            if not held.connected.done():
                held.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _connect(self) -> _Held:
        async with self._lock:
            if self._held is not None and self._held.usable:
                return self._held
            held = self._held = _Held()
            held.task = asyncio.create_task(self._hold(held), name="mcp-connection")
            self._tasks.add(held.task)
            held.task.add_done_callback(self._tasks.discard)
            await asyncio.wait(
                (held.task, held.connected),
                timeout=self._connect_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if held.connected.done():
                return held
            if not held.task.done():
                held.task.cancel()
                raise ServerFailed(f"The server did not answer within {self._connect_s:g} s.")
            raise ServerFailed(held.reason)

    async def _hold(self, held: _Held) -> None:
        try:
            client = Client(
                self._open_transport(held.let_go),
                cache=None,
                client_info=mcp_types.Implementation(name="hansard", version=version("hansard")),
                message_handler=self._on_message,
            )
            async with client:
                held.connected.set_result(client.session)
                await held.leaving.wait()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            held.reason = reason_of(error)
        finally:
            held.leaving.set()

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._on_list_changed()


class _Held:
    """What the task that holds a connection and its users tell each other.

    Attributes:
        reason: why the connection ended by itself.
        leaving: the connection is not to be used any more.
    """

    def __init__(self) -> None:
        self.connected: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self.reason = ""
        self.task: asyncio.Task[None]

    @property
    def session(self) -> ClientSession:
        return self.connected.result()

    @property
    def usable(self) -> bool:
        return self.connected.done() and not self.leaving.is_set() and not self.task.done()

    def let_go(self) -> None:
        self.leaving.set()


def reason_of(error: BaseException) -> str:
    """Return what failed, for the model: no address, header or path of this server stands in it."""
    leaves = _leaves(error)
    for kinds, words in _REASONS:
        for leaf in leaves:
            if isinstance(leaf, kinds):
                said = leaf.error.message if isinstance(leaf, MCPError) else str(leaf)
                return words.format(said=said)
    return "The server failed."


# The words of other errors may hold anything.
_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((AddressRefused, AddressUnknown), "The server can't be called: {said}."),
    ((AnswerTooLarge,), "The server can't be used: {said}."),
    ((MCPError,), "The server answered: {said}"),
    ((TimeoutError, httpx2.TimeoutException), "The server did not answer in time."),
    ((httpx2.ConnectError,), "The server can't be reached."),
    ((httpx2.HTTPError,), "The connection to the server broke."),
    ((ValidationError,), "The server's answer is not what the protocol says."),
    ((OSError,), "The server can't be started, or its connection broke."),
)


def _failed(reason: str, error: Exception) -> ServerFailed:
    code = error.code if isinstance(error, MCPError) else 0
    if code == mcp_types.CONNECTION_CLOSED:
        return ServerFailed(reason or "The server has closed the connection.", code)
    return ServerFailed(reason_of(error), code)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel the task, and give it a moment to tell the server."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_PATIENCE_S)
    if task.done() and not task.cancelled():
        task.exception()
