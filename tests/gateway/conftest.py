"""The HTTP door in front of a server of this process, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.databases import Databases
from tests.support.gateway import Door, open_door
from tests.support.invariants import check_store
from tests.support.server import make_settings, running_server


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
