"""What a server is not to import before it is used: else everybody's start pays for it."""

from __future__ import annotations

import subprocess
import sys

# Each with what uses it.
LATER = {
    "alembic": "a database without this version's schema",
    "sqlglot": "the first filter over a corpus",
    "jsonschema": "the first tool call",
    "psycopg": "PostgreSQL",
    "sqlalchemy.dialects.postgresql": "PostgreSQL",
    "hansard_server.repository.sql.indexes": "a database without this version's schema",
    "hansard_server.agents.connections": "the setting `connections`, an agent's URL",
    "hansard_client": "the commands for people",
    "hansard_server.agents.models.extractive": "the first agent with this model",
    "hansard_server.agents.models.scripted": "the first agent with this model",
    "hansard_server.agents.velocity.render": "the first template",
    "hansard_gateway.app": "the HTTP door, in a process of its own",
    "starlette": "the HTTP door",
    "uvicorn": "the HTTP door",
    "markitdown": "documents, in a process of their own",
    "google.adk": "an adapter",
    "agents": "an adapter",
    "mcp": "agents with tools of other servers",
    "pydantic_ai": "models of providers",
    "opentelemetry": "traces",
    "numpy": "nothing of ours",
}
PROGRAM = """
import sys
sys.argv = ["hansard", "serve"]
import hansard_server.cli, hansard_server.serving
print(*sys.modules)
"""


def test_serving_imports_nothing_that_is_for_later() -> None:
    command = [sys.executable, "-c", PROGRAM]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported = set(shown.split())
    assert "hansard_server.app" in imported
    assert not {name: use for name, use in LATER.items() if name in imported}
