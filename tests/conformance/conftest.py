"""The suite that every store passes: each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from sqlalchemy import Engine

from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.store import SqlStore
from tests.support.databases import Databases
from tests.support.invariants import check_invariants
from tests.support.plans import noting
from tests.support.records import with_session


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
def run_by() -> str:
    """Return who runs the store's statements: SQLAlchemy, so that all are noted, or the driver."""
    return "sqlalchemy"


@pytest.fixture
async def whole(store: SqlStore, engine: Engine) -> AsyncIterator[None]:
    """Begin with one session, and check the record at the end."""
    await with_session(store)
    yield
    with engine.connect() as connection:
        check_invariants(connection)


@pytest.fixture
async def store(
    url: str, database: str, run_by: str, planned_statements: Callable[[str], set[str]]
) -> AsyncIterator[SqlStore]:
    """Give an open store on the database of `url`; what it issues has a line among the plans."""
    if run_by == "driver":
        store = await SqlStore.open(url)
        yield store
        await store.close()
        return
    with noting(Engine) as issued:
        store = await SqlStore.open(url)
        yield store
        await store.close()
    unknown = issued.normal - planned_statements(database)
    assert not unknown, "tests/support/plans.py has no call that issues:\n" + "\n".join(unknown)
