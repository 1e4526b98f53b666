"""Holds the code to the table of rooms: which part may import what. What no line allows is refused,
so a new part, or a part's first use of a library, begins with a line here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"

# Groups of modules that the table names together. A name stands for a module and all below it.
GROUPS: dict[str, tuple[str, ...]] = {
    "MESSAGES": ("hansard", "buf.validate", "google.api", "google.protobuf", "google.rpc"),
    "GRPC": ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "STUBS"),
    "SQL": ("sqlalchemy", "alembic", "psycopg"),
    # For every room but the innermost: where tests interrupt it, and what it tells operators.
    "WATCHED": ("hansard_server.failpoints", "hansard_server.telemetry", "structlog"),
    "ROOMS": (
        "hansard_server.access",
        "hansard_server.agents",
        "hansard_server.artifacts",
        "hansard_server.corpora",
        "hansard_server.resources",
        "hansard_server.turns",
    ),
    "CORE": (
        "hansard_server.domain",
        "hansard_server.repository.access",
        "hansard_server.repository.rates",
        "hansard_server.repository.api",
        "hansard_server.repository.blobs",
        "hansard_server.repository.commands",
        "hansard_server.repository.corpora",
        "hansard_server.repository.forks",
    ),
}
# The generated *_pb2_grpc modules import grpc: who may use messages may not by that use stubs.
STUBS_SUFFIX = "_pb2_grpc"

ANYTHING = ("ANYTHING",)

# Rooms and libraries that are planned stand here too, so that they come in where they belong.
# Room (the longest prefix of a module's name decides) → what it may import besides itself and the
# standard library.
TABLE: dict[str, tuple[str, ...]] = {
    # The composition: alone in knowing every part, the gateway and the client too.
    "hansard_server.app": ANYTHING,
    "hansard_server.cli": ANYTHING,
    "hansard_server.serving": ANYTHING,
    "hansard_server.offline": ANYTHING,
    # Beside them.
    "hansard_server.stores": (
        *("hansard_server.config", "hansard_server.lifecycle", "CORE"),
        *("hansard_server.repository.sql", "SQL"),
    ),
    "hansard_server.supervisor": (*("hansard_server.config", "hansard_server.stores", "WATCHED"),),
    "hansard_server.replicas": (
        *("hansard_server.config", "hansard_server.lifecycle", "hansard_server.stores"),
        *("hansard_server.peers", "hansard_server.turns", "CORE", "hansard_server.repository.sql"),
    ),
    "hansard_server.__init__": (),
    "hansard_server.__main__": ("hansard_server.cli",),
    # It starts the gateway as a process; what it takes from it is how to bind a port.
    "hansard_server.http_door": (
        *("hansard_server.config", "hansard_server.stores", "WATCHED"),
        "hansard_gateway.sockets",
    ),
    # Models have settings of their own, which the room keeps.
    "hansard_server.config": (
        *("hansard_server.domain", "hansard_server.agents.models.settings"),
        *("pydantic", "pydantic_settings"),
    ),
    "hansard_server.failpoints": (),
    "hansard_server.lifecycle": ("CORE", "ROOMS", "GRPC", "MESSAGES", "WATCHED"),
    "hansard_server.telemetry": (
        "hansard_server.domain",
        "structlog",
        "opentelemetry",
        "prometheus_client",
    ),
    # From the inside out.
    "hansard_server.domain": (),
    "hansard_server.repository.__init__": (),
    "hansard_server.repository.access": ("CORE",),
    "hansard_server.repository.blobs": ("CORE",),
    "hansard_server.repository.rates": ("CORE",),
    "hansard_server.repository.api": ("CORE",),
    "hansard_server.repository.commands": ("CORE",),
    "hansard_server.repository.corpora": ("CORE",),
    "hansard_server.repository.forks": ("CORE",),
    "hansard_server.repository": ("CORE", "SQL", "WATCHED"),
    "hansard_server.agents": (
        *("hansard_server.domain", "MESSAGES", "WATCHED"),
        *("attrs", "jsonschema", "markitdown", "pydantic", "re2", "referencing"),
        "hansard_server.agents.models.providers",
    ),
    # The libraries of providers, which pydantic-ai drives, and the HTTP that it speaks.
    "hansard_server.agents.models.providers": (
        *("hansard_server.agents", "hansard_server.domain", "MESSAGES", "WATCHED"),
        *("pydantic", "pydantic_ai", "openai", "anthropic", "google.genai", "httpx2"),
    ),
    # The official SDK is an extra, and so is the HTTP client that it uses.
    "hansard_server.agents.mcp": (
        *("hansard_server.agents", "hansard_server.domain", "MESSAGES", "WATCHED"),
        *("anyio", "httpcore2", "httpx2", "mcp", "mcp_types", "pydantic"),
    ),
    # Who answers, here or elsewhere: it alone knows all that an agent may have.
    "hansard_server.agents.running": (
        *("hansard_server.agents", "hansard_server.agents.mcp", "hansard_server.agents.remote"),
        "MESSAGES",
    ),
    # The client of agents that run elsewhere.
    "hansard_server.agents.remote": (
        *("hansard_server.agents", "hansard_server.domain", "MESSAGES", "WATCHED"),
        *("GRPC", "protovalidate"),
    ),
    "hansard_server.resources": ("CORE", "MESSAGES", "WATCHED", "re2"),
    "hansard_server.turns": (
        *("CORE", "hansard_server.agents", "hansard_server.resources", "MESSAGES", "WATCHED"),
    ),
    "hansard_server.artifacts": (
        *("CORE", "hansard_server.resources", "MESSAGES", "WATCHED", "obstore", "puremagic"),
    ),
    "hansard_server.corpora": (
        *("CORE", "hansard_server.resources", "MESSAGES", "WATCHED", "sqlglot"),
    ),
    "hansard_server.access": (
        *("CORE", "hansard_server.resources", "MESSAGES", "WATCHED", "limits"),
    ),
    # Between processes: the wire of `turns`, as `servicers` are that of clients.
    "hansard_server.peers": (
        *("CORE", "hansard_server.agents", "hansard_server.turns", "MESSAGES", "GRPC"),
    ),
    "hansard_server.servicers": (
        *("CORE", "ROOMS", "MESSAGES", "WATCHED", "GRPC"),
        *("hansard_server.lifecycle", "protovalidate"),
    ),
    # Clients of the contract, and of nothing else.
    # Adapters for libraries that are installed with their extras.
    "hansard_client.adk": (
        "hansard_client",
        "MESSAGES",
        "google.adk",
        "google.genai",
        "typing_extensions",
    ),
    "hansard_client.openai_agents": ("hansard_client", "agents"),
    "hansard_client": ("MESSAGES", "GRPC"),
    "hansard_client.commands": ("MESSAGES", "hansard_client", "rich", "typer"),
    "hansard_gateway": ("MESSAGES", "GRPC", "python_multipart", "starlette", "uvicorn", "uvloop"),
}


@dataclass(frozen=True)
class Source:
    """A module: its name (a package's own file ends in __init__) and its text."""

    module: str
    text: str


def sources() -> Iterator[Source]:
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        yield Source(".".join(parts), path.read_text())


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything the module imports, wherever it does so."""
    for node in ast.walk(ast.parse(source.text)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=names, level=level):
                package = source.module.split(".")[:-level] if level else []
                base = ".".join([*package, module] if module else package)
                for alias in names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def room_of(module: str) -> str | None:
    """Return the line of the table that speaks of the module."""
    return max((room for room in TABLE if within(module, room)), key=len, default=None)


def allowed(name: str, entries: tuple[str, ...]) -> bool:
    """Tell whether one of the entries, modules or groups, lets the name be imported."""
    if any(part.endswith(STUBS_SUFFIX) for part in name.split(".")):
        return any(e in {"STUBS", "ANYTHING"} or allowed(name, GROUPS.get(e, ())) for e in entries)
    return any(
        e == "ANYTHING" or (allowed(name, GROUPS[e]) if e in GROUPS else within(name, e))
        for e in entries
    )


def violations(source: Source) -> list[str]:
    """Return what the module imports against the table."""
    room = room_of(source.module)
    if room is None:
        return [f"{source.module}: no line of the table speaks of it"]
    return [
        f"{source.module}:{line}: {room} may not import {name}"
        for line, name in imports(source)
        if name.split(".")[0] not in sys.stdlib_module_names
        # A room inside a room is reached only by a line that allows it.
        if room_of(name) != room
        if not allowed(name, TABLE[room])
    ]


def test_code_keeps_to_the_table() -> None:
    found = list(sources())
    assert found
    assert [line for source in found for line in violations(source)] == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("hansard_server.domain.keys", "import grpc"),
        ("hansard_server.domain.keys", "from google.protobuf import struct_pb2"),
        ("hansard_server.domain.keys", "from hansard_server import failpoints"),
        ("hansard_server.repository.api", "from sqlalchemy import text"),
        ("hansard_server.repository.api", "from .sql import store"),
        ("hansard_server.repository.sql.store", "from hansard.v1 import event_pb2"),
        ("hansard_server.repository.sql.store", "import hansard_server.turns.engine"),
        ("hansard_server.agents.loop", "import grpc.aio"),
        ("hansard_server.agents.loop", "from hansard_server.agents import remote"),
        ("hansard_server.agents.loop", "from hansard_server.repository import api"),
        ("hansard_server.turns.engine", "def f():\n    import sqlalchemy"),
        ("hansard_server.turns.engine", "from hansard_server.repository.sql import store"),
        ("hansard_server.turns.engine", "from hansard.v1 import event_service_pb2_grpc"),
        (
            "hansard_server.turns.engine",
            "from hansard.v1.turn_service_pb2_grpc import TurnServiceStub",
        ),
        ("hansard_server.turns.engine", "from hansard_server.servicers import convert"),
        ("hansard_server.turns.__init__", "from ..servicers import convert"),
        ("hansard_server.corpora.search", "from hansard_server.repository import engine"),
        ("hansard_server.servicers.events", "from hansard_server.repository import sql"),
        ("hansard_server.servicers.events", "import importlib; importlib.import_module('psycopg')"),
        ("hansard_server.servicers.events", "import hansard_gateway"),
        ("hansard_client.client", "from hansard_server.domain import keys"),
        ("hansard_client.client", "from hansard_client import commands"),
        ("hansard_client.commands.chat", "import grpc"),
        ("hansard_gateway.app", "import hansard_server"),
        ("hansard_gateway.app", "import hansard_client"),
        ("hansard_server.turns.engine", "import some_new_library"),
        ("hansard_server.some_new_room", ""),
        ("some_new_package.module", ""),
    ],
)
def test_violation_is_found(module: str, text: str) -> None:
    assert len(violations(Source(module, text))) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("hansard_server.domain.keys", "import re\nfrom hansard_server.domain import limits"),
        ("hansard_server.domain.__init__", "from .limits import Limits"),
        ("hansard_server.repository.api", "from hansard_server.repository.commands import Append"),
        ("hansard_server.repository.sql.store", "import sqlalchemy\nfrom . import tables"),
        ("hansard_server.agents.remote.client", "import grpc\nfrom hansard.v1 import a_pb2_grpc"),
        ("hansard_server.turns.engine", "from hansard_server.repository.api import Store"),
        ("hansard_server.turns.engine", "from hansard.v1 import event_pb2"),
        ("hansard_server.servicers.events", "from hansard.v1 import event_service_pb2_grpc"),
        ("hansard_server.app", "import hansard_gateway\nfrom hansard_server.repository import sql"),
        ("hansard_server.cli", "from hansard_client import cli"),
    ],
)
def test_allowed_import_is_not_found(module: str, text: str) -> None:
    assert violations(Source(module, text)) == []
