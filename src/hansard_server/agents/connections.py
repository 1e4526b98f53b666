"""Connections: what agents may name instead of a URL, and the secrets that go with it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

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

HTTP_SCHEMES: Final[Mapping[str, int | None]] = {"https": 443, "http": 80}
RUNTIME_SCHEMES: Final[Mapping[str, int | None]] = {"grpcs": 443, "grpc": None}

_Name = Annotated[str, StringConstraints(pattern=r"^[0-9a-zA-Z_-]{1,64}$")]


class BadConnections(Exception):  # noqa: N818 - reads as what it is
    """The file can't be used; the message is for the operator and holds no secret."""


class UnknownConnection(Exception):  # noqa: N818 - reads as what it is
    """Neither a name that the settings know nor a URL that could be called."""


class _Part(BaseModel):
    # Most servers have no such file, and should not make its schemas whenever they start.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class McpServer(_Part):
    """An MCP server: at a URL, or a command that is started for each turn that needs it."""

    url: str = ""
    headers: dict[str, SecretStr] = {}
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, SecretStr] = {}
    cwd: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.url) == bool(self.command):
            raise ValueError("must have either url or command")
        if self.url and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd go with command")
        if self.command and self.headers:
            raise ValueError("headers go with url")
        if self.url:
            parse_url(self.url, HTTP_SCHEMES)
        return self


class Runtime(_Part):
    """A server of agents elsewhere.

    Attributes:
        url: grpcs:// with TLS, grpc:// without.
        token: sent with every call as `authorization: Bearer …`.
        ca_file: authorities for the server's certificate, PEM. Default: the system's.
    """

    url: str
    token: SecretStr = SecretStr("")
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        parse_url(self.url, RUNTIME_SCHEMES)
        return self


class Connections(_Part):
    """All that the file says."""

    mcp_servers: dict[_Name, McpServer] = {}
    runtimes: dict[_Name, Runtime] = {}


@dataclass(frozen=True, slots=True)
class Outside:
    """What agents may reach outside of this server: by name, or by a URL that the guard allows."""

    connections: Connections = field(default_factory=Connections.model_construct)
    guard: OutgoingGuard = field(default_factory=OutgoingGuard)

    @classmethod
    def of(
        cls,
        connections: Connections,
        rules: tuple[Rule, ...] = (),
        *,
        resolve: Resolve = resolve_by_system,
    ) -> Outside:
        """Return what may be reached: by the rules, and the URLs that the connections name."""
        servers = connections.mcp_servers.values()
        urls = [parse_url(server.url, HTTP_SCHEMES) for server in servers if server.url]
        urls += [parse_url(r.url, RUNTIME_SCHEMES) for r in connections.runtimes.values()]
        return cls(connections, OutgoingGuard((*rules, *map(rule_of, urls)), resolve=resolve))

    def mcp_server(self, server: str) -> McpServer:
        """Return the MCP server that an agent names. Raises UnknownConnection."""
        named = self.connections.mcp_servers.get(server)
        if named is not None:
            return named
        return McpServer(url=str(self._url(server, HTTP_SCHEMES, "MCP server")))

    def runtime(self, runtime: str) -> Runtime:
        """Return the runtime that an agent names. Raises UnknownConnection."""
        named = self.connections.runtimes.get(runtime)
        if named is not None:
            return named
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


def load_connections(path: Path) -> Connections:
    """Return what the file says. Raises BadConnections."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return Connections.model_validate(content)
    except OSError as error:
        raise BadConnections(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConnections(f"{path}: {error}") from None
    except ValidationError as error:
        # Never the values: they may be secrets.
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        raise BadConnections(f"{path}: {place}: {said}") from None
