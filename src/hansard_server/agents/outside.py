"""Outside: which MCP servers and runtimes agents may reach, by name or by URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Final

from hansard_server.agents.outgoing import (
    BadAddress,
    OutgoingGuard,
    Resolve,
    Rule,
    Url,
    parse_url,
    resolve_by_system,
    rule_of,
)
from hansard_server.domain.values import dataclass

if TYPE_CHECKING:
    from hansard_server.agents.connections import Connections, McpServer, Runtime

HTTP_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "http": 80}
RUNTIME_SCHEMES: Final[Mapping[str, int | None]] = {"grpcs": 443, "grpc": None}


class UnknownConnection(Exception):  # noqa: N818 - reads as what it is
    """Neither a name that the settings know nor a URL that could be called."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What agents may reach outside of this server: by name, or by a URL that the guard allows."""

    connections: Connections | None = None
    guard: OutgoingGuard = field(default_factory=OutgoingGuard)

    @classmethod
    def of(
        cls,
        connections: Connections | None,
        rules: tuple[Rule, ...] = (),
        *,
        resolve: Resolve = resolve_by_system,
    ) -> Outside:
        """Return what may be reached: by the rules, and the URLs that the connections name."""
        urls: list[Url] = []
        if connections is not None:
            servers = connections.mcp_servers.values()
            urls += [parse_url(server.url, HTTP_SCHEMES) for server in servers if server.url]
            urls += [parse_url(r.url, RUNTIME_SCHEMES) for r in connections.runtimes.values()]
        return cls(connections, OutgoingGuard((*rules, *map(rule_of, urls)), resolve=resolve))

    def mcp_server(self, server: str) -> McpServer:
        """Return the MCP server that an agent names. Raises UnknownConnection."""
        if self.connections is not None and server in self.connections.mcp_servers:
            return self.connections.mcp_servers[server]
        # Most agents name neither these nor runtimes.
        from hansard_server.agents.connections import McpServer  # noqa: PLC0415

        return McpServer(url=str(self._url(server, HTTP_SCHEMES, "MCP server")))

    def runtime(self, runtime: str) -> Runtime:
        """Return the runtime that an agent names. Raises UnknownConnection."""
        if self.connections is not None and runtime in self.connections.runtimes:
            return self.connections.runtimes[runtime]
        from hansard_server.agents.connections import Runtime  # noqa: PLC0415

        return Runtime(url=str(self._url(runtime, RUNTIME_SCHEMES, "runtime")))

    def _url(self, text: str, schemes: Mapping[str, int | None], what: str) -> Url:
        if "://" not in text:
            raise UnknownConnection(f"this server knows no {what} {text[:64]!r}")
        try:
            url = parse_url(text, schemes)
        except BadAddress as error:
            raise UnknownConnection(f"the URL {error}") from None
        fault = self.guard.find_fault(url)
        if fault:
            raise UnknownConnection(fault)
        return url
