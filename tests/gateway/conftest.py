"""The HTTP door in front of a server of this process, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.databases import Databases
from tests.support.gateway import Door, open_door
from tests.support.invariants import check_store
from tests.support.server import make_settings, running_server
from tests.support.talk import Talk


@pytest.fixture
async def door(store_url: str, tmp_path: Path) -> AsyncIterator[Door]:
    """Give a door to a server on each database in turn."""
    async with (
        running_server(make_settings(tmp_path / "data", store_url)) as running,
        open_door(running) as opened,
    ):
        yield opened
    check_store(store_url)


@pytest.fixture
async def plain(databases: Databases, tmp_path: Path) -> AsyncIterator[Door]:
    """Give a door to a server on SQLite, for what no database has a say in."""
    url = databases.migrated("sqlite")
    async with (
        running_server(make_settings(tmp_path / "data", url)) as running,
        open_door(running) as opened,
    ):
        yield opened
    check_store(url)


@pytest.fixture
def door_loop(
    databases: Databases, tmp_path: Path
) -> Iterator[tuple[asyncio.AbstractEventLoop, Door]]:
    """Give a door with a session, and the loop that it runs on, to tests that are no coroutines."""
    url = databases.migrated("sqlite")
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()

    async def begin() -> Door:
        settings = make_settings(tmp_path / "data", url)
        running = await stack.enter_async_context(running_server(settings))
        await Talk(running).begin([{"agent_output": {"content": "Yes."}}])
        return await stack.enter_async_context(open_door(running))

    yield loop, loop.run_until_complete(begin())
    loop.run_until_complete(stack.aclose())
    loop.close()
