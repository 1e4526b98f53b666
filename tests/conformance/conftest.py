"""The suite that every store passes: each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Engine

from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.store import SqlStore
from tests.support.databases import Databases


@pytest.fixture
def empty_url(databases: Databases, database: str) -> Iterator[str]:
    """Give the URL of a database without a schema."""
    url = databases.empty(database)
    yield url
    databases.drop(url)


@pytest.fixture
def url(store_url: str) -> str:
    """Give the URL of a database with the schema and nothing in it."""
    return store_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Give an engine on the database of `url`."""
    engine = make_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    """Give an open store on the database of `url`."""
    store = await SqlStore.open(url)
    yield store
    await store.close()
