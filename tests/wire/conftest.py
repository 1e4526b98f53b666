"""A server in this process for each test, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hansard.v1 import agent_service_pb2
from tests.support.databases import Databases
from tests.support.invariants import check_store
from tests.support.server import Running, make_settings, running_server


@pytest.fixture
async def hansard(store_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server on each database in turn."""
    async with running_server(make_settings(tmp_path / "data", store_url)) as running:
        yield running
    check_store(store_url, tmp_path / "data")


@pytest.fixture
async def plain(databases: Databases, tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server on SQLite, for what no database has a say in."""
    url = databases.migrated("sqlite")
    async with running_server(make_settings(tmp_path / "data", url)) as running:
        yield running


def agent_request(**fields: object) -> agent_service_pb2.CreateAgentRequest:
    """Return a request that creates an agent, with these fields instead of the usual ones."""
    usual: dict[str, object] = {"name": "Support", "model": {"name": "hansard/extractive"}}
    return agent_service_pb2.CreateAgentRequest(**{**usual, **fields})
