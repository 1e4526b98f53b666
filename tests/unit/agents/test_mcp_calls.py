"""Calls of MCP tools that end early: the server is told at once, and the connection stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hansard.v1 import agent_pb2
from hansard_server.agents.connections import Connections, load_connections
from hansard_server.agents.mcp.toolbox import McpToolbox
from hansard_server.agents.outgoing import parse_rules
from hansard_server.agents.outside import Outside
from tests.support.agents import MemoryFiles
from tests.support.mcp import connections_file, mcp_process, until_noted


@pytest.fixture(params=["http", "stdio"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Give what may be reached, and the server's name."""
    if request.param == "stdio":
        path = connections_file(tmp_path / "connections.toml", tmp_path / "notes")
        yield Outside.of(load_connections(path)), "local"
        return
    with mcp_process(tmp_path) as process:
        yield Outside.of(Connections(), parse_rules(f"127.0.0.1:{process.port}")), process.url


async def test_call_that_is_cancelled_is_cancelled_at_the_server(
    server: Any, tmp_path: Path
) -> None:
    outside, name = server
    agent = agent_pb2.Agent()
    for tool in ("wait", "add"):
        agent.tool_configurations[tool].mcp.tool_id = tool
        agent.tool_configurations[tool].mcp.server = name
    box = McpToolbox(outside)
    context: Any = SimpleNamespace(files=MemoryFiles())
    async with box.open(agent) as tools:
        call = asyncio.create_task(tools["wait"].run({}, context))
        await until_noted(tmp_path / "notes", "wait began")
        call.cancel()
        # Its turn may go on for long.
        await until_noted(tmp_path / "notes", "wait cancelled")
        result: Any = await tools["add"].run({"a": 1, "b": 2}, context)
        assert result.output["structured_content"] == {"result": 3}
    await box.close()
