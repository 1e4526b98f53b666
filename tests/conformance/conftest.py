"""The suite that every store passes: each test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.migrations import migrate
from hansard_server.repository.sql.store import SqlStore
from tests.support.postgres import PostgresServer

DATABASES = ("sqlite", "postgresql")


class Databases:
    """Makes databases, empty or with the schema; the schema is migrated once and then copied."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder
        self._templates: dict[str, str] = {}
        self._count = 0

    def empty(self, kind: str) -> str:
        """Return the URL of a new database without a schema."""
        if kind == "postgresql":
            return self._server().create_database()
        self._count += 1
        return f"sqlite:///{self._folder}/{self._count}.db"

    def migrated(self, kind: str) -> str:
        """Return the URL of a new database with the schema."""
        if kind not in self._templates:
            template = self.empty(kind)
            engine = make_engine(template)
            migrate(engine)
            # Disposed, SQLite's write-ahead log is empty: the file alone is the database.
            engine.dispose()
            self._templates[kind] = template
        template = self._templates[kind]
        if kind == "postgresql":
            return self._server().create_database(template)
        url = self.empty(kind)
        shutil.copyfile(template.removeprefix("sqlite:///"), url.removeprefix("sqlite:///"))
        return url

    def drop(self, url: str) -> None:
        """Drop a database that was made here."""
        if url.startswith("postgresql"):
            self._server().drop_database(url)

    def _server(self) -> PostgresServer:
        server = self._request.getfixturevalue("postgres_server")
        assert isinstance(server, PostgresServer)
        return server


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Databases:
    """Give the maker of databases."""
    return Databases(request, tmp_path_factory.mktemp("databases"))


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """Give the kind of database that the test runs on."""
    return str(request.param)


@pytest.fixture
def empty_url(databases: Databases, database: str) -> Iterator[str]:
    """Give the URL of a database without a schema."""
    url = databases.empty(database)
    yield url
    databases.drop(url)


@pytest.fixture
def url(databases: Databases, database: str) -> Iterator[str]:
    """Give the URL of a database with the schema and nothing in it."""
    url = databases.migrated(database)
    yield url
    databases.drop(url)


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
