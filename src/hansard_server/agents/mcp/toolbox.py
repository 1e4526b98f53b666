"""The toolbox: gives each turn the MCP tools of its agent, over connections of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import field

import structlog

from hansard.v1 import agent_pb2
from hansard_server.agents.api import Tool
from hansard_server.agents.connections import McpServer
from hansard_server.agents.mcp.connection import McpConnection, ServerFailed, open_transport
from hansard_server.agents.mcp.http import GuardedBackend
from hansard_server.agents.mcp.tools import Listing, McpTool, UnusableTool, list_tools
from hansard_server.agents.outside import Outside, UnknownConnection
from hansard_server.domain.values import dataclass

CONNECT_S = 15.0
"""How long a server may take to be started or reached."""
LISTING_S = 20.0
"""How long a server may take to list its tools, the connection included."""
LISTING_TTL_S = 60.0
"""How long a listing is believed without asking again."""
_FAILURE_TTL_S = 5.0
_LISTINGS_MAX = 64
_COMMANDS_MAX = 64
_CLOSE_PATIENCE_S = 5.0

_log = structlog.get_logger("hansard.mcp")


@dataclass(frozen=True, slots=True)
class _Known:
    """What a server last said of its tools, or why it did not."""

    listing: Listing | None
    problem: str
    until_s: float

    def lacks(self, wanted: Collection[str]) -> bool:
        """Tell whether there is a listing without one of these."""
        return self.listing is not None and not self.listing.keys() >= set(wanted)


class McpToolbox:
    """Opens MCP servers for turns, and remembers for a while what tools they have."""

    def __init__(
        self,
        outside: Outside,
        *,
        backend: GuardedBackend | None = None,
        connect_s: float = CONNECT_S,
        listing_ttl_s: float = LISTING_TTL_S,
    ) -> None:
        """Reach what `outside` allows."""
        self._outside = outside
        self._backend = backend or GuardedBackend(outside.guard)
        self._connect_s = connect_s
        self._listing_ttl_s = listing_ttl_s
        self._known: dict[str, _Known] = {}
        self._commands = asyncio.Semaphore(_COMMANDS_MAX)
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, agent: agent_pb2.Agent) -> AsyncIterator[Mapping[str, Tool]]:
        """Give the agent's MCP tools, by configuration name, for as long as a turn takes.

        What can't be reached is there too, as a tool that says so.
        """
        wanted = {
            name: configuration.mcp
            for name, configuration in agent.tool_configurations.items()
            if configuration.WhichOneof("tool") == "mcp"
        }
        turn = _Turn(self)
        try:
            yield await turn.find(wanted)
        finally:
            # A server that does not go by itself keeps no turn from ending.
            for connection in turn.connections.values():
                task = asyncio.create_task(connection.close(), name="mcp-close")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Return when the connections of ended turns are closed, or should be."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSE_PATIENCE_S)

    def connection_to(self, server: str) -> McpConnection:
        """Return a connection that opens when it is needed. Raises UnknownConnection."""
        target = self._outside.mcp_server(server)
        return McpConnection(
            lambda on_closed: self._open(target, on_closed),
            connect_s=self._connect_s,
            on_list_changed=lambda: self.forget(server),
        )

    @asynccontextmanager
    async def _open(
        self, target: McpServer, on_closed: Callable[[], None]
    ) -> AsyncIterator[object]:
        place = self._commands if target.command else nullcontext()
        async with place, open_transport(target, self._backend, on_closed) as streams:
            yield streams

    def forget(self, server: str) -> None:
        """Ask the server anew when its tools are wanted next."""
        self._known.pop(server, None)

    async def listing(
        self, server: str, connection: McpConnection, wanted: Collection[str]
    ) -> Listing:
        """Return the server's tools: as they were listed lately, or now when a tool that is wanted
        was not among them. Raises ServerFailed.
        """
        known = self._known.get(server)
        if known is None or known.until_s < time.monotonic() or known.lacks(wanted):
            known = await self._ask(server, connection)
            self._remember(server, known)
        if known.listing is None:
            raise ServerFailed(known.problem)
        return known.listing

    async def _ask(self, server: str, connection: McpConnection) -> _Known:
        try:
            async with asyncio.timeout(LISTING_S):
                listing = await list_tools(connection)
        except TimeoutError:
            problem = "The server did not list its tools in time."
        except ServerFailed as error:
            problem = str(error)
        else:
            return _Known(listing, "", time.monotonic() + self._listing_ttl_s)
        _log.warning("mcp_server_failed", server=server.partition("?")[0], problem=problem)
        return _Known(None, problem, time.monotonic() + min(_FAILURE_TTL_S, self._listing_ttl_s))

    def _remember(self, server: str, known: _Known) -> None:
        self._known.pop(server, None)
        self._known[server] = known
        while len(self._known) > _LISTINGS_MAX:
            del self._known[next(iter(self._known))]


@dataclass(slots=True)
class _Turn:
    """The connections of one turn, one to each server."""

    box: McpToolbox
    connections: dict[str, McpConnection] = field(default_factory=dict)

    async def find(self, wanted: Mapping[str, agent_pb2.McpTool]) -> dict[str, Tool]:
        """Return the tools by configuration name; servers are asked side by side."""
        servers: dict[str, set[str]] = {}
        for tool in wanted.values():
            servers.setdefault(tool.server, set()).add(tool.tool_id)
        answers = await asyncio.gather(*(self._listing(*server) for server in servers.items()))
        listings = dict(zip(servers, answers, strict=True))
        return {name: self._tool(tool, listings[tool.server]) for name, tool in wanted.items()}

    async def _listing(self, server: str, wanted: Collection[str]) -> Listing | str:
        """Return the server's tools, or why there are none."""
        try:
            connection = self.connections[server] = self.box.connection_to(server)
            return await self.box.listing(server, connection, wanted)
        except UnknownConnection as error:
            return f"Its server can't be called: {error}."
        except ServerFailed as error:
            return str(error)

    def _tool(self, tool: agent_pb2.McpTool, listing: Listing | str) -> Tool:
        if isinstance(listing, str):
            return UnusableTool(tool.tool_id, listing)
        listed = listing.get(tool.tool_id)
        if listed is None:
            return UnusableTool(tool.tool_id, "Its server does not have it.")
        if listed.problem:
            return UnusableTool(tool.tool_id, listed.problem)
        return McpTool(
            tool.tool_id,
            listed,
            self.connections[tool.server],
            on_unknown=lambda: self.box.forget(tool.server),
        )
