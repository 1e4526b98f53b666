"""Connections: what agents may name instead of a URL, and the secrets that go with it: a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from hansard_server.agents.outgoing import parse_url
from hansard_server.agents.outside import HTTP_SCHEMES, RUNTIME_SCHEMES

_Name = Annotated[str, StringConstraints(pattern=r"^[0-9a-zA-Z_-]{1,64}$")]


class BadConnections(Exception):  # noqa: N818 - reads as what it is
    """The file can't be used; the message is for the operator and holds no secret."""


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
